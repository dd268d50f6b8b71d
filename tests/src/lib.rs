//! A laptop plays a cluster: nodes and pods in network namespaces, plugged by the real CNI plugins.
//!
//! * [`netns`]: namespaces, and threads and processes inside them.
//! * [`lab`]: nodes joined by a fabric, set up as Flannel does it, with pods and their manifests.
//! * [`agent`]: the agent under test, one per node; [`stage`]: a small lab with agents.
//! * [`probe`]: who reaches whom; [`stream`]: what a long flow loses; [`frame`]: packets nobody would send.
//! * [`matrix`]: all pods against all pods, compared with what should be.
//! * [`random`] policies and what [`simulate`] says of them, for comparison with the kernel.
//! * [`busy`]: a foreign program that makes the kernel slow.
//! * [`mounts`]: disks that fail.
//! * [`skip`]: tests that cannot run here say so.
//!
//! Everything a run makes lives in namespaces and one temporary directory with the run's own prefix. A keeper
//! process ([`keeper`]) removes them when the run ends in any way, also by a kill.

#![forbid(unsafe_code)]

pub mod addresses;
pub mod agent;
pub mod busy;
pub mod cluster;
pub mod cni;
pub mod frame;
pub mod keeper;
pub mod lab;
pub mod manifest;
pub mod matrix;
pub mod mounts;
pub mod netns;
pub mod probe;
pub mod program;
pub mod random;
pub mod run;
pub mod simulate;
pub mod skip;
pub mod stage;
pub mod stream;
pub mod tools;
pub mod wait;
