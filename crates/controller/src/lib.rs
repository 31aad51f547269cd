//! The one controller runner of the project. A controller says which kinds it watches and how an object maps to keys, and
//! computes a [`Plan`] for a key from a [`World`]; everything else happens here: shared caches, a deduplicating queue with
//! back-off, bounded workers, writes, read-your-writes, events, leader election, health.
//!
//! It is deliberately not generic over kinds (one watch loop, one worker loop) and holds no knowledge of any controller.
//!
//! Reading order: [`plan`] (what a controller returns), [`world`] (what it reads), [`source`] (what it watches),
//! [`runner`] (how it is driven), then [`queue`], [`store`], [`execute`], [`leader`]. [`sim`] and
//! [`process`] run plans without any server.

pub mod args;
pub mod certificate;
pub mod error;
pub mod events;
pub mod execute;
pub mod health;
pub mod key;
pub mod leader;
pub mod metrics;
pub mod object;
pub mod part;
pub mod plan;
pub mod process;
pub mod queue;
pub mod runner;
pub mod sim;
pub mod source;
pub mod store;
pub mod world;

pub use error::{Class, Error};
pub use key::{Key, Kind, Object, Target};
pub use plan::{Act, Op, Plan};
pub use runner::{Cluster, Controller, Options, Runner};
pub use source::{Source, Watch};
pub use world::World;
