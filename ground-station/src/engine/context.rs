//! What the tasks of requests share.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use swarm_shared::net::endpoint::Endpoint;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::delivery::handle::DeliveryHandle;
use super::files::fetch::ChunkRoutes;
use super::files::memory_budget::MemoryBudget;
use super::stop::coordinator::StopCoordinator;
use super::transport::gateway_peers::GatewayPeers;
use crate::store::Store;

/// What the tasks of requests share; each clone refers to the same state.
#[derive(Clone, Debug)]
pub(super) struct SharedContext {
    pub(super) endpoint: Endpoint,
    /// Number of the next command.
    pub(super) next_id: Arc<AtomicU64>,
    pub(super) epoch: u64,
    pub(super) deliveries: DeliveryHandle,
    pub(super) stops: Arc<StopCoordinator>,
    pub(super) chunk_routes: ChunkRoutes,
    /// Memory for files to bridged devices.
    pub(super) memory_budget: MemoryBudget,
    pub(super) store: Store,
    /// Tasks that end with the engine, not with their request.
    pub(super) tasks: TaskTracker,
    pub(super) gateway_peers: GatewayPeers,
    /// One permit for each node that may transfer files at the same time.
    pub(super) transfer_slots: Arc<Semaphore>,
    /// When the engine started its links.
    pub(super) started: Instant,
}

#[cfg(test)]
impl SharedContext {
    pub(super) fn for_test(
        endpoint: Endpoint,
        store: Store,
        deliveries: DeliveryHandle,
        stops: StopCoordinator,
    ) -> Self {
        Self {
            endpoint,
            next_id: Arc::new(AtomicU64::new(1)),
            epoch: store.epoch(),
            deliveries,
            stops: Arc::new(stops),
            chunk_routes: ChunkRoutes::default(),
            memory_budget: MemoryBudget::default(),
            store,
            tasks: TaskTracker::new(),
            gateway_peers: GatewayPeers::default(),
            transfer_slots: Arc::new(Semaphore::new(1)),
            started: swarm_shared::net::clock::now(),
        }
    }
}
