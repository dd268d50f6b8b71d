//! Text leaves memory and comes back. A program of its own, for tests beside it would map more at the same time.

use towpath_dataplane::program_text::unmap_unused;

#[test]
fn text_leaves_memory_and_what_is_needed_comes_back() {
    let before = unmap_unused();
    // What runs from here on was mapped before.
    let after = unmap_unused();

    assert!(matches!((before, after), (Ok(before), Ok(after)) if after > 0 && after < before));
}
