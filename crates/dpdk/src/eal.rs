//! The environment: one per process, alive until the process ends.
#![allow(unsafe_code, reason = "calls into DPDK")]

use crate::device::{self, Device, Info};
use crate::mbuf::Pool;
use crate::sys;
use std::ffi::{CStr, CString, c_int};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

static EAL: OnceLock<Eal> = OnceLock::new();

/// The running DPDK environment.
#[derive(Debug)]
pub struct Eal {
    /// Control calls of DPDK must not overlap.
    control: Mutex<()>,
    pools: AtomicU32,
}

/// Memory that DPDK manages for one memory node, in bytes and pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heap {
    /// Its number.
    pub id: u32,
    /// All of it.
    pub size: u64,
    /// What is free.
    pub free_size: u64,
    /// The largest free piece.
    pub greatest_free_size: u64,
    /// What is in use.
    pub allocated_size: u64,
    /// Pieces in use.
    pub allocations: u64,
    /// Free pieces.
    pub free_pieces: u64,
}

/// DPDK could not be started.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Only one environment per process is possible: permanent.
    #[error("DPDK was started already")]
    Twice,
    /// An argument holds a zero byte: permanent.
    #[error("EAL argument {0:?} holds a zero byte")]
    Argument(String),
    /// DPDK refused: its own messages on standard error tell more. Permanent unless memory or devices change.
    #[error(
        "DPDK did not start with the EAL arguments {arguments:?}: {source} (without hugepages add --no-huge)"
    )]
    Refused {
        /// What it was given.
        arguments: Vec<String>,
        /// Its error number.
        source: Error,
    },
}

/// An error number of DPDK, which is one of the system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error(pub i32);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // SAFETY: DPDK returns a NUL-terminated text in a buffer of the calling thread, which is copied before the next call.
        let text = unsafe { CStr::from_ptr(sys::rte_strerror(self.0)) };
        f.write_str(&text.to_string_lossy())
    }
}

impl std::error::Error for Error {}

impl Error {
    /// The reason of a call that failed by returning null or -1.
    pub(crate) fn last() -> Error {
        // SAFETY: reads a thread-local number.
        Error(unsafe { sys::okm_errno() })
    }

    /// Zero is success, a negative number an error.
    pub(crate) fn check(result: c_int) -> Result<c_int, Error> {
        if result < 0 {
            Err(Error(-result))
        } else {
            Ok(result)
        }
    }
}

impl Eal {
    /// Starts DPDK with EAL arguments as DPDK documents them (without the program's name). The calling thread becomes the main core's.
    ///
    /// # Errors
    /// DPDK was started before in this process, or it refuses.
    pub fn init(arguments: &[String]) -> Result<&'static Eal, InitError> {
        static ONCE: Mutex<()> = Mutex::new(());
        let _once = ONCE.lock().unwrap_or_else(PoisonError::into_inner);
        if EAL.get().is_some() {
            return Err(InitError::Twice);
        }
        let texts = std::iter::once("dpservice")
            .chain(arguments.iter().map(String::as_str))
            .map(|text| CString::new(text).map_err(|_| InitError::Argument(text.to_owned())))
            .collect::<Result<Vec<_>, _>>()?;
        // DPDK keeps pointers to these texts and reorders them: they live as long as the process.
        let texts: &'static mut [CString] = texts.leak();
        let mut pointers: Vec<_> = texts.iter().map(|text| text.as_ptr().cast_mut()).collect();
        pointers.push(std::ptr::null_mut());
        let count = texts.len() as c_int;
        // SAFETY: `count` NUL-terminated strings and a null pointer, all of which stay valid (leaked); the parser reorders the
        // pointers but does not write to the strings.
        let result = unsafe { sys::rte_eal_init(count, pointers.leak().as_mut_ptr()) };
        if result < 0 {
            return Err(InitError::Refused {
                arguments: arguments.to_vec(),
                source: Error::last(),
            });
        }
        Ok(EAL.get_or_init(|| Eal {
            control: Mutex::new(()),
            pools: AtomicU32::new(0),
        }))
    }

    /// The environment, if it was started.
    #[must_use]
    pub fn get() -> Option<&'static Eal> {
        EAL.get()
    }

    pub(crate) fn control(&self) -> MutexGuard<'_, ()> {
        // The lock guards no data: after a panic elsewhere it is as good as before.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a device while running, as `--vdev` or `-a` does at start, such as `net_tap7,iface=dtap7`.
    ///
    /// # Errors
    /// The driver is unknown or refuses.
    pub fn attach(&self, arguments: &str) -> Result<(), Error> {
        let text = CString::new(arguments).map_err(|_| Error(22))?;
        let _control = self.control();
        // SAFETY: a NUL-terminated string that DPDK copies.
        Error::check(unsafe { sys::rte_dev_probe(text.as_ptr()) }).map(drop)
    }

    /// Every heap, in the order of the memory nodes.
    #[must_use]
    pub fn heaps(&self) -> Vec<Heap> {
        let mut found = Vec::new();
        for id in 0.. {
            // SAFETY: all-zero bytes are a valid value of this structure of integers.
            let mut heap: sys::okm_heap = unsafe { std::mem::zeroed() };
            // SAFETY: a live structure that is filled in; a place behind the last one is an error.
            if unsafe { sys::okm_heap(id, &mut heap) } < 0 {
                break;
            }
            let sys::okm_heap {
                size,
                free_size,
                greatest_free_size,
                allocated_size,
                allocations,
                free_pieces,
            } = heap;
            found.push(Heap {
                id,
                size,
                free_size,
                greatest_free_size,
                allocated_size,
                allocations,
                free_pieces,
            });
        }
        found
    }

    /// All ports, in the order of their numbers. A port that fails to describe itself is left out.
    #[must_use]
    pub fn ports(&self) -> Vec<Info> {
        let _control = self.control();
        let mut found = Vec::new();
        let mut next = 0;
        // SAFETY: accepts any number and returns a valid port number or a negative one.
        while let Ok(port) = u16::try_from(unsafe { sys::okm_next_port(next) }) {
            found.extend(device::info(port));
            next = port + 1;
        }
        found
    }

    /// A pool of `count` buffers for frames of up to `frame_max` bytes (headroom is added).
    ///
    /// # Errors
    /// `ENOMEM`: DPDK needs more memory (EAL option -m, or hugepages).
    pub fn pool(&self, count: u32, frame_max: u16) -> Result<Pool, Error> {
        let number = self.pools.fetch_add(1, Ordering::Relaxed);
        let _control = self.control();
        Pool::new(number, count, frame_max)
    }

    /// Configures and starts a port with `queues` receive and transmit queues.
    ///
    /// # Errors
    /// Whatever the driver refuses; a port that is open already is `EBUSY`.
    pub fn open(
        &'static self,
        port: u16,
        pool: &Pool,
        config: device::Config,
    ) -> Result<Device, Error> {
        Device::open(self, port, pool, config)
    }

    /// Cores for packet threads: those given by `-l` or `-c` beside the first.
    #[must_use]
    pub fn worker_cores(&self) -> usize {
        // SAFETY: reads the configuration, which is fixed after the start.
        unsafe { sys::okm_worker_cores() as usize }
    }

    /// Makes the calling thread packet thread `number`: known to DPDK, and tied to the CPUs of that worker core if there is one.
    ///
    /// # Errors
    /// No place for a further thread (`ENOMEM`) or the CPUs do not exist (`EINVAL`).
    pub fn enter_worker(&self, number: usize) -> Result<(), Error> {
        // SAFETY: registers the calling thread once (the shim checks) and sets its affinity; both are allowed at any time.
        Error::check(unsafe { sys::okm_enter_worker(number as u32) }).map(drop)
    }
}
