//! Random scripts for the tests of models. A fuzz target finds the less likely ones.

use crate::random::Random;

/// Scripts of these lengths, in bytes. They are the same in each run.
pub(crate) fn random_scripts(lengths: impl IntoIterator<Item = usize>) -> impl Iterator<Item = Vec<u8>> {
    let mut random = Random::from_state(0x9e37_79b9_7f4a_7c15);
    lengths.into_iter().map(move |length| {
        let bytes = std::iter::repeat_with(|| (random.number() >> 32) as u8);
        bytes.take(length).collect()
    })
}
