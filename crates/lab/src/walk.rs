//! How a packet goes through the lab.

pub mod packet;
pub mod pcapng;
pub mod sign;
