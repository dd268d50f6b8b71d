//! Mistakes in how manifests fit together: each object is valid, but together they hardly mean what was meant.
