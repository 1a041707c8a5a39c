//! What is asked of each guest, made from what is asked of all.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use swarm_shared::net::clock;
use swarm_shared::proto::outcome::Reply;

use super::work::{Copy, Job, Terms};
use super::{Meant, Work, files};
use crate::fleet::files as paths;
use crate::fleet::{FilesToSend, NodeRef};
use crate::store::deliveries::RecordTarget;

pub(super) fn job(guest: Meant, part: u32, work: Result<Work, Reply>) -> Job {
    Job {
        guest,
        part,
        work,
        about: None,
        file: None,
        copy: None,
    }
}

pub(super) fn noted(job: &Job) -> RecordTarget {
    RecordTarget {
        node: job.guest.node.clone(),
        part: job.part,
        about: job.about.clone(),
    }
}

/// Whoever asked waits for the end.
pub(super) fn waiting(begin: Duration, answer: Duration) -> Terms {
    Terms {
        started: clock::now(),
        begin,
        answer,
        room: begin,
        patience: None,
        batch: None,
    }
}

pub(super) fn shown(files: &FilesToSend) -> String {
    match files {
        FilesToSend::Same { files } => {
            let dests: Vec<&str> = files.iter().map(|file| file.dest.as_str()).collect();
            dests.join(" ")
        }
        FilesToSend::PerNode { dir, dest } => format!("--per-node {} {dest}", dir.display()),
    }
}

/// Each is read when its turn comes, and sent as it is now or not at all.
pub(super) async fn sending(meant: Vec<Meant>, files: FilesToSend, room: &files::Room) -> Vec<Job> {
    let mut jobs = Vec::new();
    match files {
        FilesToSend::Same { files } => {
            for (part, file) in (0..).zip(files) {
                let source = files::Source::look(file.source, room.clone()).await;
                let sent = meant
                    .iter()
                    .map(|guest| to_send(guest.clone(), part, file.dest.clone(), source.clone()));
                jobs.extend(sent);
            }
        }
        FilesToSend::PerNode { dir, dest } => {
            for guest in meant {
                let (dir, node) = (dir.clone(), guest.node.node.clone());
                let found = tokio::task::spawn_blocking(move || paths::file_for_node(&dir, &node)).await;
                let found = match found {
                    Ok(Ok(source)) => paths::destination(&dest, &source, false)
                        .map(|dest| (source, dest))
                        .map_err(|error| error.to_string()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                let one = match found {
                    Ok((source, path)) => {
                        let source = files::Source::look(source, room.clone()).await;
                        to_send(guest, 0, path, source)
                    }
                    Err(error) => job(guest, 0, Err(Reply::failed(error))),
                };
                jobs.push(Job {
                    about: Some(dest.clone()),
                    ..one
                });
            }
        }
    }
    jobs
}

fn to_send(guest: Meant, part: u32, path: String, source: Result<Arc<files::Source>, Reply>) -> Job {
    let about = Some(path.clone());
    let (file, work) = match source {
        Ok(source) => {
            let content = Bytes::new();
            (Some(source), Ok(Work::Push { path, content }))
        }
        Err(why) => (None, Err(why)),
    };
    Job {
        about,
        file,
        ..job(guest, part, work)
    }
}

pub(super) async fn fetching(meant: Vec<Meant>, own: &[NodeRef], path: &str, dir: &Path) -> Vec<Job> {
    let roots = files::open_dir(dir.to_owned()).await;
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for node in own.iter().chain(meant.iter().map(|guest| &guest.node)) {
        *names.entry(node.node.to_string()).or_default() += 1;
    }
    let jobs = meant.into_iter().map(|guest| {
        let NodeRef { node, id } = &guest.node;
        let unique = names.get(node.as_str()) == Some(&1);
        let name = paths::copy_name(node, id, unique, path);
        match (roots.clone(), name) {
            (Ok(roots), Ok(name)) => Job {
                copy: Some(Copy {
                    roots,
                    dir: dir.to_owned(),
                    name,
                }),
                ..job(
                    guest,
                    0,
                    Ok(Work::Fetch {
                        path: path.to_owned(),
                    }),
                )
            },
            (Err(error), _) => job(guest, 0, Err(Reply::failed(error))),
            (_, Err(error)) => job(guest, 0, Err(Reply::failed(error.to_string()))),
        }
    });
    jobs.collect()
}
