//! Stories of whole clusters: production replicas, journals and kernels in the simulated world. Each name is a true
//! sentence; `docs/scenarios.md` has the list.

mod bounds;
mod clients;
mod disk;
mod effects;
mod laggards;
mod limits;
mod partitions;
mod poison;
mod quarantine;
mod seeds;
mod sizes;
mod snapshot;
mod view_change;
