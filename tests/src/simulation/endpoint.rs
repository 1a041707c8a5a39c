//! A station's door: nodes dial it, and it keeps a session with each.

use std::collections::BTreeMap;
use std::io;
use std::pin::pin;

use swarm_shared::proto::encoded::Parcel;
use swarm_shared::proto::id::{Instance, PeerId};
use swarm_shared::proto::session::Event;
use swarm_shared::proto::wire::{Frame, Lane};
use turmoil::net::TcpListener;

use super::link::{Greeting, Peer, look};
use super::world::{Died, HostId, HostKind, STATION_PORT, World};

pub(super) struct Door {
    me: HostId,
    instance: Instance,
    listener: Option<TcpListener>,
    moves: u16,
    greetings: Vec<Greeting>,
    pub(super) peers: BTreeMap<PeerId, Peer>,
}

/// What happened to a node's link.
pub(super) enum Happened {
    Up { resumed: bool },
    Down,
    Frame(Box<Frame>),
}

impl Door {
    pub(super) async fn open(world: &World, me: HostId, instance: Instance) -> io::Result<Self> {
        let moves = world.controls[me].borrow().moves;
        Ok(Self {
            me,
            instance,
            listener: Some(TcpListener::bind(("0.0.0.0", STATION_PORT + moves)).await?),
            moves,
            greetings: Vec::new(),
            peers: BTreeMap::new(),
        })
    }

    /// Accepts, greets and reads; what has happened, in order.
    pub(super) fn turn(&mut self, world: &World) -> io::Result<Vec<(PeerId, Happened)>> {
        self.follow(world)?;
        while let Some(listener) = &self.listener
            && let Some(Ok((stream, from))) = look(pin!(listener.accept()))
        {
            let node = world.at(from.ip());
            let node = node.filter(|host| world.hosts[*host].kind == HostKind::Node);
            if let Some(host) = node
                && let Ok(greeting) = Greeting::new(stream, host, self.instance, world.now_ms())
            {
                self.greetings.push(greeting);
            }
        }
        let mut happened = Vec::new();
        self.greet(world, &mut happened);
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.read(world, id, &mut happened);
        }
        Ok(happened)
    }

    /// The address has changed: the old door is nowhere any more.
    fn follow(&mut self, world: &World) -> io::Result<()> {
        let moves = world.controls[self.me].borrow().moves;
        if moves == self.moves {
            return Ok(());
        }
        self.moves = moves;
        self.greetings.clear();
        self.listener = None;
        let mut bind = Box::pin(TcpListener::bind(("0.0.0.0", STATION_PORT + moves)));
        self.listener = look(bind.as_mut()).transpose()?;
        Ok(())
    }

    fn greet(&mut self, world: &World, happened: &mut Vec<(PeerId, Happened)>) {
        let mut kept = Vec::new();
        for mut greeting in std::mem::take(&mut self.greetings) {
            match greeting.turn(world.now_ms()) {
                Ok(Some(instance)) => {
                    let id = world.hosts[greeting.host].id;
                    if !self.peers.contains_key(&id) {
                        match Peer::new(greeting.host, self.instance, world.instant(self.me)) {
                            Ok(peer) => self.peers.insert(id, peer),
                            Err(_) => continue,
                        };
                    }
                    self.read(world, id, happened);
                    let Some(peer) = self.peers.get_mut(&id) else {
                        continue;
                    };
                    // A node that dials anew knows best that the old link is gone.
                    peer.drop_link();
                    tell_down(peer, id, happened);
                    peer.attach(world, self.me, greeting, instance);
                }
                Ok(None) => kept.push(greeting),
                Err(_) => {}
            }
        }
        self.greetings = kept;
    }

    fn read(&mut self, world: &World, id: PeerId, happened: &mut Vec<(PeerId, Happened)>) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        for event in peer.read(world, self.me) {
            match event {
                Event::Opened { resumed } => {
                    let name = &world.hosts[peer.host].name;
                    world.note(self.me, format_args!("is linked with {name}, resumed: {resumed}"));
                    peer.up = true;
                    happened.push((id, Happened::Up { resumed }));
                }
                Event::Frame { frame, .. } => happened.push((id, Happened::Frame(frame))),
                Event::Settled(..) | Event::Silent | Event::Heard => {}
            }
        }
        tell_down(peer, id, happened);
    }

    /// Hands a frame to a node's session; whether there is one that takes it.
    pub(super) fn send(
        &mut self,
        to: &PeerId,
        parcel: Parcel,
        lane: Lane,
        deadline: Option<std::time::Instant>,
    ) -> bool {
        let peer = self.peers.get_mut(to).filter(|peer| peer.session.is_open());
        peer.is_some_and(|peer| peer.send(parcel, lane, deadline))
    }

    /// Writes to all; the nodes whose links broke at it.
    pub(super) fn write(&mut self, world: &World) -> Result<Vec<(PeerId, Happened)>, Died> {
        let mut happened = Vec::new();
        for (id, peer) in &mut self.peers {
            peer.write(world, self.me)?;
            tell_down(peer, *id, &mut happened);
        }
        Ok(happened)
    }

    /// Whom frames flow with.
    pub(super) fn open_links(&self) -> Vec<HostId> {
        let open = self.peers.values().filter(|peer| peer.session.is_open());
        open.map(|peer| peer.host).collect()
    }
}

fn tell_down(peer: &mut Peer, id: PeerId, happened: &mut Vec<(PeerId, Happened)>) {
    if peer.up && !peer.session.is_open() {
        peer.up = false;
        happened.push((id, Happened::Down));
    }
}
