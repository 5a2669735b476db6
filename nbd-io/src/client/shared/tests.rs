mod api;
mod engine;
mod pipe;
mod server;
mod sim;
