//! The allocator of the C library, for a process that loads much once and then changes little.
//!
//! With glibc each thread gets a heap of its own, and what one thread allocates and another frees stays with the
//! process. One heap, given back after loading, costs our few threads nothing measurable and saves a third of the
//! memory of an agent with 10,000 pods and policies. Other C libraries do as they do.

/// Makes all threads share one heap. Call it before threads are started.
pub fn share_one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: mallopt takes two integers and changes settings of the allocator under its own lock. A value that
        // it does not know makes it return 0, and then everything stays as it was.
        #[expect(unsafe_code, reason = "the C library offers this to C only")]
        unsafe {
            nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
        }
    }
}

/// Gives memory that is not used back to the system.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: malloc_trim takes an integer, locks the heaps and unmaps pages that hold no allocation.
        #[expect(unsafe_code, reason = "the C library offers this to C only")]
        unsafe {
            nix::libc::malloc_trim(0);
        }
    }
}
