mod accepting;
mod busy;
mod clock;
mod execution;
mod haggling;
mod loopback;
mod patience;
mod replying;
