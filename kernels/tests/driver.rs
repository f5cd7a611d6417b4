//! The driver's side of the launch interface on a real card: memory, copies, marks, and what is refused. The
//! kernels' own results are the business of `redstart-kernels-checks`. Where there is no card, the tests say so
//! and pass.

#![cfg(all(feature = "driver", any(target_os = "linux", target_os = "windows")))]

use redstart_kernels::card::Urgency;
use redstart_kernels::device::{Device, DeviceError, Launch, MARKS, Mark};
use redstart_kernels::driver::{CudaDevice, DeviceChoice, OpenError, probe};
use redstart_kernels::image;

#[expect(clippy::print_stdout, reason = "a skipped test says why")]
fn device() -> Option<CudaDevice> {
    match CudaDevice::open(DeviceChoice::default(), Urgency::First) {
        Ok(device) => Some(device),
        Err(OpenError::NoCuda(why)) => {
            println!("skipped: {why}");
            None
        }
        Err(OpenError::Device(error)) => panic!("{error}"),
    }
}

#[test]
fn opening_says_what_probing_says() {
    match (probe(), CudaDevice::open(DeviceChoice::default(), Urgency::First)) {
        (Err(why), Err(OpenError::NoCuda(reason))) => assert_eq!(why, reason),
        (Ok(cards), Ok(device)) => assert!(cards.contains(device.card())),
        (cards, device) => panic!("{cards:?}, {:?}", device.err()),
    }
}

#[test]
fn bytes_go_there_and_come_back() {
    let Some(mut device) = device() else { return };
    let before = device.free_memory().unwrap();
    let sent: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    let buffer = device.allocate(sent.len(), "a test").unwrap();
    assert_eq!(buffer.address() % 256, 0);
    assert!(device.free_memory().unwrap() < before);
    device.upload(&sent, buffer).unwrap();
    let mut received = vec![0; sent.len()];
    device.download(buffer, &mut received).unwrap();
    assert!(received == sent);

    device.fill(buffer.slice(1, 3), 0xff).unwrap();
    device.download(buffer, &mut received[..6]).unwrap();
    assert_eq!(received[..6], [0, 255, 255, 255, 4, 5]);

    // From pinned memory and back, with another thread as the device's owner.
    let mut pinned = device.allocate_pinned(4096).unwrap();
    assert!(pinned.bytes().iter().all(|&byte| byte == 0));
    pinned.bytes().fill(7);
    std::thread::spawn(move || {
        device.copy_in(&mut *pinned, 2048, buffer.slice(256, 2048)).unwrap();
        device.copy_out(buffer.slice(256, 4096), &mut *pinned).unwrap();
        let mark = device.mark().unwrap();
        device.wait(mark, true).unwrap();
        assert!(pinned.bytes()[..2048].iter().all(|&byte| byte == 7));
        assert_eq!(pinned.bytes()[2048], ((256 + 2048) % 251) as u8);
        device.free(buffer);
    })
    .join()
    .unwrap();
}

#[test]
fn marks_measure_and_expire() {
    let Some(mut device) = device() else { return };
    let buffer = device.allocate(64 << 20, "a test").unwrap();
    let first = device.mark().unwrap();
    for _ in 0..16 {
        device.fill(buffer, 1).unwrap();
    }
    let second = device.mark().unwrap();
    device.wait(second, false).unwrap();
    let time = device.elapsed_ms(first, second).unwrap();
    assert!(time > 0.01 && time < 1000.0, "{time} ms for writing 1 GB");
    for _ in 0..MARKS {
        device.mark().unwrap();
    }
    assert!(device.wait(first, true).is_err());
    assert!(device.wait(Mark(1_000_000), true).is_err());
}

#[test]
fn what_cannot_be_done_is_refused() {
    let Some(mut device) = device() else { return };
    let error = device.allocate(1 << 50, "a petabyte").unwrap_err();
    assert!(matches!(&error, DeviceError::OutOfMemory { what, .. } if what == "a petabyte"), "{error}");

    let launch = |kernel, params: &'static [u8]| Launch {
        kernel,
        grid: [1, 1, 1],
        threads: 32,
        shared_bytes: 0,
        params,
        overlap: true,
    };
    let error = device.launch(&launch("no_such_kernel", &[0; 8])).unwrap_err().to_string();
    assert_eq!(error, "the kernel no_such_kernel does not exist");
    if let Some(kernel) = image::embedded().iter().flat_map(|module| module.kernels).next() {
        let error = device.launch(&launch(kernel.name, &[0; 3])).unwrap_err().to_string();
        assert!(error.contains("bytes of parameters"), "{error}");
    }

    device.begin_recording().unwrap();
    assert!(device.begin_recording().is_err());
    assert!(device.allocate(16, "a test").is_err());
    let empty = device.end_recording().unwrap();
    device.replay(empty).unwrap();
    assert!(device.end_recording().is_err());
    // The device still works.
    let buffer = device.allocate(16, "a test").unwrap();
    device.upload(&[3; 16], buffer).unwrap();
    let mut bytes = [0; 16];
    device.download(buffer, &mut bytes).unwrap();
    assert_eq!(bytes, [3; 16]);
}
