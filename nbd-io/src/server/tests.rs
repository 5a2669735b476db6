mod busy;
mod execution;
mod haggling;
mod loopback;
mod replying;
