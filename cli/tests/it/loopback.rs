//! Services that tests give to the program to talk to.

use std::net::SocketAddr;

use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::server::Router;

/// Serves on loopback for as long as the test runs. Returns where.
pub(crate) fn serve(services: Router) -> SocketAddr {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            services.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
    });
    receiver.recv().unwrap()
}
