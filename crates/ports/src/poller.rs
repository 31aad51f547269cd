//! Waiting for many ports at once: epoll plus a way to be woken by another thread.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// Ready ports reported by one wait; the others are reported by the next one (level triggered).
pub const PORTS_READY_MAX: usize = 64;

/// Shorter waits are made with a finer clock than epoll's.
const COARSE: Duration = Duration::from_millis(5);

const WAKE_TOKEN: u64 = u64::MAX;

/// What a wait found.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    tokens: [u16; PORTS_READY_MAX],
    count: usize,
    /// Another thread called [`Waker::wake`].
    pub woken: bool,
}

impl Ready {
    /// Nothing was found.
    pub const NONE: Ready = Ready {
        tokens: [0; PORTS_READY_MAX],
        count: 0,
        woken: false,
    };

    /// Tokens of the ports that are readable or in an error state.
    #[must_use]
    pub fn tokens(&self) -> &[u16] {
        self.tokens.get(..self.count).unwrap_or_default()
    }
}

/// Waits until a port is readable, a deadline passes or somebody wakes it.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    waker: Waker,
}

/// Ends a [`Poller::wait`] from another thread, or the next one if none is going on. Wakes are not counted.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<EventFd>,
}

impl Waker {
    /// Wakes the poller.
    pub fn wake(&self) {
        // Fails only if 2^64 - 2 wakes are outstanding, which is "woken" anyway.
        let _ = self.event.write(1);
    }
}

impl Poller {
    /// A poller without ports.
    ///
    /// # Errors
    /// If the process has no file descriptor left.
    pub fn new() -> io::Result<Poller> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN, WAKE_TOKEN))?;
        Ok(Poller {
            epoll,
            waker: Waker {
                event: Arc::new(event),
            },
        })
    }

    /// A handle that wakes this poller.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Watches a port's [`crate::Port::readiness`] under `token`. Closing the port ends the watch.
    ///
    /// # Errors
    /// If the descriptor is watched already or the kernel is out of memory.
    pub fn add(&self, fd: impl AsFd, token: u16) -> io::Result<()> {
        Ok(self
            .epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, u64::from(token)))?)
    }

    /// Ends the watch of a port that stays open.
    ///
    /// # Errors
    /// If it is not watched.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Waits at most `limit`, to the microsecond (zero only looks).
    ///
    /// # Errors
    /// None in practice; an interrupted wait is an empty answer.
    pub fn wait(&self, limit: Duration) -> io::Result<Ready> {
        let mut events = [EpollEvent::empty(); PORTS_READY_MAX];
        let millis = limit.as_micros().div_ceil(1000);
        let mut timeout = u16::try_from(millis).map_or(EpollTimeout::MAX, EpollTimeout::from);
        if !limit.is_zero() && limit < COARSE {
            // Epoll itself counts in milliseconds, which is too long between two looks at a driver without readiness.
            let fd = self.epoll.0.as_fd();
            let _ = ppoll(
                &mut [PollFd::new(fd, PollFlags::POLLIN)],
                Some(limit.into()),
                None,
            );
            timeout = EpollTimeout::ZERO;
        }
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let mut ready = Ready::NONE;
        for event in events.iter().take(count) {
            match u16::try_from(event.data()) {
                Ok(token) => {
                    if let Some(slot) = ready.tokens.get_mut(ready.count) {
                        *slot = token;
                        ready.count += 1;
                    }
                }
                Err(_) => {
                    ready.woken = true;
                    // Nonblocking; an error means that nothing was to be cleared.
                    let _ = self.waker.event.read();
                }
            }
        }
        Ok(ready)
    }
}
