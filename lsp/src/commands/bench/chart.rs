//! Bar charts as SVG.
//!
//! Colours are written into the SVG for the light theme; a style sheet can replace each by its value.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Text and axes: `#1F2328`.
const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
/// Lines behind the bars: `#D8DEE4`.
const GRID: RGBColor = RGBColor(0xd8, 0xde, 0xe4);
/// The bars of each series: `#C4512D` and `#E3A857`.
const SERIES: [RGBColor; 2] = [RGBColor(0xc4, 0x51, 0x2d), RGBColor(0xe3, 0xa8, 0x57)];

const WIDTH: u32 = 760;
/// Of one bar with the space around it.
const BAR_HEIGHT: u32 = 26;
/// Between rows.
const ROW_GAP: u32 = 12;
/// For the names of the rows, at the left.
const NAMES_WIDTH: u32 = 200;
/// For the numbers at the ends of the longest bars.
const NUMBERS_SHARE: f64 = 0.2;
/// For the scale below.
const SCALE_HEIGHT: u32 = 46;

/// Values to the right, rows downwards.
type PlottingArea<'a> = DrawingArea<SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Horizontal bars: a row for each name, in it a bar for each series.
pub(super) struct BarChart<'a> {
    /// What the bars count: `tokens per second`.
    pub(super) unit: &'a str,
    /// Names of the series, at most two; shown when there is more than one.
    pub(super) series: &'a [&'a str],
    /// A name and a value for each series.
    pub(super) rows: Vec<(String, Vec<f64>)>,
}

impl BarChart<'_> {
    /// An `<svg>` element.
    pub(super) fn svg(&self) -> anyhow::Result<String> {
        let row_height = self.series.len() as u32 * BAR_HEIGHT + ROW_GAP;
        let height = self.rows.len() as u32 * row_height + SCALE_HEIGHT;
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
            let most =
                self.rows.iter().flat_map(|(_, values)| values).copied().fold(f64::MIN_POSITIVE, f64::max);
            let mut chart = ChartBuilder::on(&area)
                // For half of the scale's last number.
                .margin_right(20)
                .set_label_area_size(LabelAreaPosition::Left, NAMES_WIDTH)
                .set_label_area_size(LabelAreaPosition::Bottom, SCALE_HEIGHT)
                // The first row on top.
                .build_cartesian_2d(0.0..most * (1.0 + NUMBERS_SHARE), self.rows.len() as f64..0.0)?;
            chart
                .configure_mesh()
                .disable_y_mesh()
                .disable_y_axis()
                .y_labels(0)
                .x_labels(6)
                .x_label_formatter(&|value| value.to_string())
                .x_desc(self.unit)
                .label_style(text_style(12))
                .axis_style(GRID)
                .bold_line_style(GRID)
                .light_line_style(TRANSPARENT)
                .draw()?;
            for (row, (name, values)) in self.rows.iter().enumerate() {
                draw_label(chart.plotting_area(), (0.0, row as f64 + 0.5), name, HPos::Right)?;
                let share = f64::from(BAR_HEIGHT) / f64::from(row_height);
                let gap = f64::from(ROW_GAP) / f64::from(row_height) / 2.0;
                for (bar, (value, color)) in values.iter().zip(SERIES).enumerate() {
                    let top = row as f64 + gap + bar as f64 * share;
                    let corners = [(0.0, top + 0.08 * share), (*value, top + 0.92 * share)];
                    chart.draw_series([Rectangle::new(corners, color.filled())])?;
                    let number = match self.series {
                        [_, _, ..] => format!("{value} {}", self.series[bar]),
                        _ => value.to_string(),
                    };
                    draw_label(chart.plotting_area(), (*value, top + 0.5 * share), &number, HPos::Left)?;
                }
            }
            area.present()?;
        }
        Ok(svg)
    }
}

fn text_style(size: u32) -> TextStyle<'static> {
    ("sans-serif", size * 5 / 4).into_font().color(&INK)
}

/// Text beside a point: `edge` is the side of the text that touches it.
fn draw_label(area: &PlottingArea<'_>, at: (f64, f64), text: &str, edge: HPos) -> anyhow::Result<()> {
    let offset = if matches!(edge, HPos::Right) { -10 } else { 6 };
    let style = text_style(13).pos(Pos::new(edge, VPos::Center));
    area.draw(&(EmptyElement::at(at) + Text::new(text.to_owned(), (offset, 0), style)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_shows_every_name_and_number_and_escapes_them() {
        let chart = BarChart {
            unit: "milliseconds",
            series: &["average", "at best"],
            rows: vec![("a < b".into(), vec![12.5, 8.25]), ("c".into(), vec![0.0, 0.0])],
        };
        let svg = chart.svg().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for text in ["a &lt; b", "12.5 average", "8.25 at best", "milliseconds", "#C4512D", "#E3A857"] {
            assert!(svg.contains(text), "{text} is missing in {svg}");
        }
    }
}
