//! What carries pod traffic on this node, and whether policy can be enforced there at all.
//!
//! [`detect`] decides from a [`Survey`], which [`survey()`] takes; nothing is changed. Where packets of pods get past the hooks
//! in which policy is enforced, the answer is an [`Obstacle`]: such a node is not ready, and says why.

mod carrier;
mod conflist;
mod obstacle;
mod survey;

use smol_str::SmolStr;
use towpath_dataplane::link::ProgramHook;

pub use carrier::Carrier;
pub use conflist::{ConfList, MOST_BYTES, chosen as chosen_conflist, parse as parse_conflist};
pub use obstacle::{Note, Obstacle, ObstacleKind};
pub use survey::{SurveyError, read_conflists, survey};

/// What there is on this node, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The interfaces.
    pub links: Vec<SurveyedLink>,
    /// Numbers of the interfaces by which a route to one address goes.
    pub routed: Vec<u32>,
    /// The runtime's choice of CNI configurations, if any can be read.
    pub conflist: Option<ConfList>,
    /// Programs at interfaces.
    pub programs: Vec<SurveyedProgram>,
    /// Flowtables that are not ours.
    pub flowtables: Vec<SurveyedFlowtable>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyedLink {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: SmolStr,
    /// The kernel's word for its kind.
    pub kind: Option<SmolStr>,
    /// The interface that it is a port of.
    pub master: Option<u32>,
    /// Whether its other end is in another network namespace.
    pub has_peer: bool,
}

/// A program at an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyedProgram {
    /// Name of the interface.
    pub interface: SmolStr,
    /// Where it hangs.
    pub hook: ProgramHook,
    /// Its name, if it is known.
    pub name: Option<SmolStr>,
}

/// A flowtable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyedFlowtable {
    /// Its table.
    pub table: SmolStr,
    /// Its name.
    pub name: SmolStr,
    /// The interfaces between which it carries packets.
    pub interfaces: Vec<SmolStr>,
}

/// What was found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detection {
    /// Who carries pod traffic here, the surest first; several on a node that is being changed over.
    pub carriers: Vec<Carrier>,
    /// Why policy could not be enforced; none is good.
    pub obstacles: Vec<Obstacle>,
    /// What is worth knowing and hinders nothing.
    pub notes: Vec<Note>,
}

impl Detection {
    /// Whether policy can be enforced on this node, as far as this can tell.
    pub fn is_enforceable(&self) -> bool {
        self.obstacles.is_empty()
    }

    /// Why not, on one line.
    pub fn refusal(&self) -> Option<String> {
        let texts: Vec<String> = self.obstacles.iter().map(ToString::to_string).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

/// Decides who carries pod traffic, and what stands in the way of policy.
pub fn detect(survey: &Survey) -> Detection {
    let (obstacles, notes) = obstacle::find(survey);
    Detection {
        carriers: carrier::find(survey),
        obstacles,
        notes,
    }
}
