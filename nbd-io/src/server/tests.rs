mod busy;
mod execution;
mod haggling;
mod loopback;
mod patience;
mod replying;
