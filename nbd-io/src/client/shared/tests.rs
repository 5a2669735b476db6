mod api;
mod ending;
mod engine;
mod pipe;
mod recovery;
mod relapse;
mod server;
mod sim;
