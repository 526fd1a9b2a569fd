//! Safe wrappers of the system calls that no library offers.
