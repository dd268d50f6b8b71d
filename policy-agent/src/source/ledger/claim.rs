//! What one document says about one object, and how claims about one object are held together.
//!
//! There is a claim per object of a source, so they are small: files are numbers, and a claim knows its place in
//! its file by where it stands in the file's list.

use std::num::{NonZeroU32, NonZeroU64};

use towpath_core::model::ObjectKey;

/// What a document says about an object.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) key: ObjectKey,
    pub(super) state: State,
    pub(super) line: u32,
}

/// How good a claim is. The numbers are the meaning of the version in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Valid, and its text can be read again.
    Good(u64),
    /// Now bad; this was the last good version.
    Kept(u64),
    /// Not in the file any more, but a part of the file is bad, so it may be in there.
    Missing(u64),
    /// Bad from the beginning, with the meaning of its stand-in, if it has one.
    Bad(Option<u64>),
    /// Bad from the beginning, and its text is gone, though a part of the file is bad: the stand-in stays.
    Lost(u64),
}

/// What consumers hold of an object, in a word: its meaning but for two bits, and whether it is a stand-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InForce(NonZeroU64);

impl InForce {
    fn new(meaning: u64, is_stand_in: bool) -> Self {
        let word = NonZeroU64::MIN | (meaning & !3);
        Self(if is_stand_in { word } else { word | 2 })
    }
}

impl State {
    /// Less is stronger: a good version, then one that may be hidden in a broken file, then a stand-in.
    pub(super) fn rank(self) -> u8 {
        match self {
            Self::Good(_) | Self::Kept(_) => 0,
            Self::Missing(_) => 1,
            Self::Bad(Some(_)) | Self::Lost(_) => 2,
            Self::Bad(None) => 3,
        }
    }

    pub(super) fn good_meaning(self) -> Option<u64> {
        match self {
            Self::Good(meaning) | Self::Kept(meaning) | Self::Missing(meaning) => Some(meaning),
            Self::Bad(_) | Self::Lost(_) => None,
        }
    }

    /// What would be in force if a claim of this state were.
    pub(super) fn wanted(self) -> Option<InForce> {
        match self {
            Self::Bad(meaning) => meaning.map(|meaning| InForce::new(meaning, true)),
            Self::Lost(meaning) => Some(InForce::new(meaning, true)),
            Self::Good(meaning) | Self::Kept(meaning) | Self::Missing(meaning) => {
                Some(InForce::new(meaning, false))
            }
        }
    }

    /// Whether the text behind the claim can be read again.
    pub(super) fn is_readable(self) -> bool {
        matches!(self, Self::Good(_) | Self::Bad(_))
    }
}

/// Where a claim stands: the number of a file, and the place in its list, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClaimId {
    pub(super) file: u32,
    place: NonZeroU32,
}

impl ClaimId {
    /// `index` counts from 0.
    pub(super) fn new(file: u32, index: u32) -> Self {
        let place = NonZeroU32::MIN.saturating_add(index);
        Self { file, place }
    }

    /// The place in the file's list, from 0.
    pub(super) fn index(self) -> usize {
        self.place.get() as usize - 1
    }
}

/// The claims about one object, and what consumers hold of it. Nearly every object has one claim.
#[derive(Debug, Default)]
pub(super) struct Standing {
    first: Option<ClaimId>,
    #[expect(
        clippy::box_collection,
        reason = "a word instead of three, in each of a million objects"
    )]
    others: Option<Box<Vec<ClaimId>>>,
    pub(super) in_force: Option<InForce>,
}

impl Standing {
    pub(super) fn add(&mut self, id: ClaimId) {
        match self.first {
            None => self.first = Some(id),
            Some(_) => self.others.get_or_insert_default().push(id),
        }
    }

    pub(super) fn remove(&mut self, id: ClaimId) {
        if let Some(others) = &mut self.others {
            others.retain(|other| *other != id);
            if self.first == Some(id) {
                self.first = others.pop();
            }
            if others.is_empty() {
                self.others = None;
            }
        } else if self.first == Some(id) {
            self.first = None;
        }
    }

    pub(super) fn claims(&self) -> impl Iterator<Item = ClaimId> {
        self.first
            .into_iter()
            .chain(self.others.iter().flat_map(|others| others.iter().copied()))
    }

    pub(super) fn has_many(&self) -> bool {
        self.others.is_some()
    }

    /// Whether nothing is said about the object and nobody holds it.
    pub(super) fn is_over(&self) -> bool {
        self.first.is_none() && self.in_force.is_none()
    }
}
