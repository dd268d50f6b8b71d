//! Walks of the calculation graph: updates in any order, squashed into one flush or split into several.

use serde::{Deserialize, Serialize};

use super::World;
use super::random::Random;
use crate::model::{Object, Update};

/// One step. An object is named by its world and its place among that world's updates, so that a walk can be
/// written down and shrunk; one that is not there is no step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The object is now as this world has it.
    Upsert(usize, usize),
    /// The object of this name is gone.
    Remove(usize, usize),
    /// What was told so far goes to the tables.
    Flush,
    /// What nobody needs any more leaves the tables.
    Collect,
}

/// Worlds, and the steps that lead through them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walk {
    /// Where the objects come from.
    pub worlds: Vec<World>,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

impl Walk {
    /// From nothing to each world in turn and back to nothing. The updates come in order, reversed or shuffled, some
    /// told twice, some after a removal of the same object; a flush comes after all or after every few of them.
    pub fn through(worlds: Vec<World>, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut steps = Vec::new();
        for (index, ups) in worlds.iter().map(objects).enumerate() {
            let before = index.checked_sub(1).map(|before| objects(&worlds[before]));
            let before = before.unwrap_or_default();
            let removals = (0..before.len()).filter(|old| {
                let key = before[*old].key();
                !ups.iter().any(|object| object.key() == key)
            });
            let mut changes: Vec<Step> = removals.map(|old| Step::Remove(index - 1, old)).collect();
            let changed = (0..ups.len()).filter(|new| !before.contains(&ups[*new]));
            changes.extend(changed.map(|new| Step::Upsert(index, new)));
            tell(&mut random, changes, &mut steps);
        }
        if let Some(last) = worlds.len().checked_sub(1) {
            let count = objects(&worlds[last]).len();
            let changes = (0..count)
                .map(|object| Step::Remove(last, object))
                .collect();
            tell(&mut random, changes, &mut steps);
            steps.push(Step::Collect);
        }
        Self { worlds, steps }
    }

    /// The whole of one world at once, then `turns` times two of its objects go and come back.
    pub fn around(world: World, turns: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let count = objects(&world).len();
        let mut steps: Vec<Step> = (0..count).map(|object| Step::Upsert(0, object)).collect();
        steps.push(Step::Flush);
        for _ in 0..turns {
            let (one, other) = (random.below(count), random.below(count));
            steps.extend([
                Step::Remove(0, one),
                Step::Remove(0, other),
                Step::Flush,
                Step::Upsert(0, one),
                Step::Upsert(0, other),
                Step::Flush,
            ]);
        }
        let worlds = vec![world];
        Self { worlds, steps }
    }

    /// The steps, each with the update that it tells, if it is one and its object is there.
    pub fn told(&self) -> impl Iterator<Item = (Step, Option<Update>)> {
        let worlds: Vec<Vec<Object>> = self.worlds.iter().map(objects).collect();
        self.steps.iter().map(move |step| {
            let object = |world: usize, index: usize| worlds.get(world)?.get(index);
            let update = match *step {
                Step::Upsert(world, index) => object(world, index).cloned().map(Update::Upsert),
                Step::Remove(world, index) => {
                    object(world, index).map(|object| Update::Remove(object.key()))
                }
                Step::Flush | Step::Collect => None,
            };
            (*step, update)
        })
    }
}

/// What the updates of a world insert, in their order.
fn objects(world: &World) -> Vec<Object> {
    let inserted = world
        .updates()
        .into_iter()
        .filter_map(|update| match update {
            Update::Upsert(object) => Some(object),
            Update::Remove(_) => None,
        });
    inserted.collect()
}

/// Puts changes in the order of their world, in the opposite one, or, as often as both, in any.
fn arrange(random: &mut Random, changes: &mut [Step]) {
    match random.below(4) {
        0 => {}
        1 => changes.reverse(),
        _ => {
            for index in (1..changes.len()).rev() {
                changes.swap(index, random.below(index + 1));
            }
        }
    }
}

/// Tells changes in a random way, and flushes at the end.
fn tell(random: &mut Random, mut changes: Vec<Step>, steps: &mut Vec<Step>) {
    arrange(random, &mut changes);
    let between_flushes = [1, 3, 100, usize::MAX][random.below(4)];
    for (position, change) in changes.into_iter().enumerate() {
        match (random.below(4), change) {
            (0, _) => steps.extend([change, change]),
            (1, Step::Upsert(world, object)) => {
                steps.extend([Step::Remove(world, object), change]);
            }
            _ => steps.push(change),
        }
        if (position + 1) % between_flushes == 0 {
            steps.push(Step::Flush);
        }
    }
    steps.push(Step::Flush);
    if random.below(2) == 0 {
        steps.push(Step::Collect);
    }
}
