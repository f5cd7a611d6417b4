//! Reads from PTX which kernels there are and how large their parameter blocks are.
//!
//! The driver takes a pointer to the parameters and copies as many bytes as the kernel was compiled for, so
//! whoever launches has to know that number to notice a host struct of another size.

/// A kernel as PTX declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// The bytes of its parameter block.
    pub parameter_bytes: usize,
}

/// The kernels of a PTX text, in its order.
///
/// # Errors
/// Names a kernel that does not take exactly one struct.
pub fn entries(ptx: &str) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    let mut rest = ptx;
    while let Some(at) = rest.find(".entry ") {
        rest = &rest[at + ".entry ".len()..];
        let (declaration, after) = rest.split_once(')').unwrap_or((rest, ""));
        rest = after;
        let (name, parameters) = declaration.split_once('(').unwrap_or((declaration, ""));
        // `.param .align 8 .b8 name_param_0[24]`; numbers and pointers have no brackets.
        let bytes = parameters.trim().strip_suffix(']').and_then(|text| text.rsplit_once('['));
        let bytes = bytes.and_then(|(_, bytes)| bytes.parse().ok());
        let name = name.trim().to_owned();
        match bytes {
            Some(parameter_bytes) if parameters.matches(".param").count() == 1 => {
                entries.push(Entry { name, parameter_bytes });
            }
            _ => return Err(format!("the kernel {name} must take exactly one parameter, a struct")),
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nvcc 13.0 writes it.
    const SAMPLE: &str = "\
.version 9.0
.target sm_120
.address_size 64

\t// .globl\tsmall_8
.extern .shared .align 128 .b8 shared_memory_pool[];

.visible .entry small_8(
\t.param .align 8 .b8 small_8_param_0[24]
)
.maxntid 256
.minnctapersm 2
{
\tld.param.b64 \t%rd1, [small_8_param_0+8];
}
\t// .globl\tbig_200
.visible .entry big_200(
\t.param .align 16 .b8 big_200_param_0[4096]
)
{
}
";

    #[test]
    fn kernels_and_their_parameter_blocks_are_read() {
        let entries = entries(SAMPLE).unwrap();
        assert_eq!(
            entries,
            [
                Entry { name: "small_8".to_owned(), parameter_bytes: 24 },
                Entry { name: "big_200".to_owned(), parameter_bytes: 4096 }
            ]
        );
    }

    #[test]
    fn a_kernel_with_other_parameters_is_named() {
        let two = ".visible .entry k(\n\t.param .u64 k_param_0,\n\t.param .align 8 .b8 k_param_1[8]\n)\n{}";
        assert_eq!(entries(two).unwrap_err(), "the kernel k must take exactly one parameter, a struct");
        assert!(entries(".visible .entry none()\n{}").is_err());
        assert!(entries(".visible .entry pointer(\n\t.param .u64 pointer_param_0\n)\n{}").is_err());
    }
}
