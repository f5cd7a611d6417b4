//! Whether the machine runs on its battery.

use std::path::Path;

/// Whether it does, as far as the system tells: on Linux from `/sys/class/power_supply`. Elsewhere, and
/// where nothing is told, it does not.
pub(crate) fn on_battery() -> bool {
    is_discharging(Path::new("/sys/class/power_supply"))
}

/// A battery of the machine (not of a mouse) that is being discharged.
fn is_discharging(supplies: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(supplies) else { return false };
    entries.flatten().any(|entry| {
        let says = |name: &str, value: &str| {
            std::fs::read_to_string(entry.path().join(name)).is_ok_and(|text| text.trim() == value)
        };
        says("type", "Battery") && !says("scope", "Device") && says("status", "Discharging")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supply(root: &Path, name: &str, files: &[(&str, &str)]) {
        let folder = root.join(name);
        std::fs::create_dir(&folder).expect("a folder");
        for (file, text) in files {
            std::fs::write(folder.join(file), format!("{text}\n")).expect("a file");
        }
    }

    #[test]
    fn a_battery_of_the_machine_counts_while_it_discharges() {
        let root = tempfile::tempdir().expect("a folder");
        assert!(!is_discharging(root.path()));
        assert!(!is_discharging(&root.path().join("none")));
        supply(root.path(), "AC", &[("type", "Mains"), ("online", "1")]);
        supply(root.path(), "mouse", &[("type", "Battery"), ("scope", "Device"), ("status", "Discharging")]);
        supply(root.path(), "BAT0", &[("type", "Battery"), ("status", "Charging")]);
        assert!(!is_discharging(root.path()));
        supply(root.path(), "BAT1", &[("type", "Battery"), ("status", "Discharging")]);
        assert!(is_discharging(root.path()));
    }
}
