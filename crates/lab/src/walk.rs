//! How a packet goes through the lab.

pub mod packet;
