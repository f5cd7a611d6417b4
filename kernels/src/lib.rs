//! Redstart's CUDA kernels and what launches them.
//!
//! The kernels are CUDA C++ in `cuda/`, one file a family; this crate has, for each family, the layout its
//! operands have in device memory, the parameter blocks, and a function that chooses the variant and the
//! grid. Everything goes through [`Device`](device::Device), a small launch interface with two
//! implementations: the CUDA driver, and a shim that runs the same kernels as plain C++ on the host, so that
//! all of this is tested where there is no GPU.
//!
//! - [`linear`]: matrix products with int4, int8, fp8 and fp16 weights, and what is fused to them.
//! - [`attention`]: paged attention, split over the keys, with grouped heads packed into rows.
//! - [`elementwise`]: embedding, norms, rotary positions and the KV append.
//! - [`sampling`]: logits to a token.
//! - [`machine`]: how fast the card itself reads, copies and multiplies.
//! - [`image`]: the kernels that this program carries, compiled or as sources.
//! - [`card`]: what is said of a card, and to it.
//! - `driver`: the CUDA driver as a device, where there are CUDA drivers.

pub mod attention;
pub mod card;
pub mod device;
#[cfg(all(feature = "driver", any(target_os = "linux", target_os = "windows")))]
pub mod driver;
pub mod elementwise;
pub mod float8;
pub mod image;
pub mod linear;
pub mod machine;
pub mod sampling;
