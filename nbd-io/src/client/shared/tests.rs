mod api;
mod ending;
mod engine;
mod pipe;
mod server;
mod sim;
