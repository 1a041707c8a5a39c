//! `door user …`, `door token …`: who may pass the doors that ask for a name.

use std::io::{BufRead, IsTerminal};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::super::Common;
use super::super::connect::Connection;
use super::super::request::{Ended, follow};
use super::super::screen::{CliError, EXIT_INTERRUPTED, Screen};
use crate::fleet::{Event, Request, UserAsk};
use crate::users::Password;
use crate::view;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Add or remove a user
    User {
        #[command(subcommand)]
        verb: UserVerb,
    },
    /// Show all users
    Users,
    /// Make a token for a program, or take one back
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Token {
        #[command(subcommand)]
        verb: Option<TokenVerb>,
        /// The user whose token it is
        #[arg(required = true)]
        name: Option<String>,
        /// How many days it is good
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3_650))]
        days: u32,
        /// What it is for, so that you know it again
        #[arg(long, value_name = "TEXT", default_value = "")]
        label: String,
    },
    /// Show all tokens that are good still; never the tokens themselves
    Tokens,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum UserVerb {
    /// Add a user, or give one another password; it is asked for, or read from standard input
    Add {
        /// Letters, digits and . _ - @ +
        name: String,
    },
    /// Remove a user; their tokens and logins end at once
    Remove {
        /// Who
        name: String,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum TokenVerb {
    /// Take a token back
    Revoke {
        /// Its number, as `door tokens` shows it
        #[arg(value_name = "ID", value_parser = token_number)]
        number: u64,
    },
}

fn token_number(text: &str) -> Result<u64, String> {
    let rule = "not the number of a token; `ground-station door tokens` shows them";
    text.parse().map_err(|_not_one| rule.to_owned())
}

pub(super) async fn run(verb: Verb, common: &Common, screen: &mut Screen) -> Result<u8, CliError> {
    let ask = match verb {
        Verb::User {
            verb: UserVerb::Add { name },
        } => {
            crate::users::check_name(&name).map_err(CliError::usage)?;
            let password = password()?;
            UserAsk::Add { name, password }
        }
        Verb::User {
            verb: UserVerb::Remove { name },
        } => UserAsk::Remove { name },
        Verb::Users => UserAsk::List,
        Verb::Token {
            verb: Some(TokenVerb::Revoke { number }),
            ..
        } => UserAsk::Revoke { number },
        Verb::Token {
            verb: None,
            name,
            days,
            label,
        } => UserAsk::MakeToken {
            name: name.unwrap_or_default(),
            days,
            label,
        },
        Verb::Tokens => UserAsk::Tokens,
    };
    let connection = Connection::open(common, "door", screen).await?;
    let outcome = ask_for(&connection, ask, screen).await;
    connection.close().await;
    outcome
}

async fn ask_for(connection: &Connection, ask: UserAsk, screen: &mut Screen) -> Result<u8, CliError> {
    let mut users = Vec::new();
    let mut tokens = Vec::new();
    let request = Request::Users { ask: ask.clone() };
    let ended = follow(&connection.fleet, request, screen, |event, _screen| {
        if let Some(Event::User(user)) = event {
            users.push(user.clone());
        } else if let Some(Event::Token(token)) = event {
            tokens.push(token.clone());
        }
        Ok(())
    })
    .await?;
    match ended {
        Ended::Whole => {}
        Ended::Interrupted => return Ok(EXIT_INTERRUPTED),
        Ended::Failed(failure, message) => return Ok(screen.fault(&CliError::request(failure, message))),
    }
    if !screen.json {
        let text = match ask {
            UserAsk::Add { .. } | UserAsk::Remove { .. } => view::users::changed(&users),
            UserAsk::List => view::users::users(&users, screen.style),
            UserAsk::MakeToken { .. } => {
                tokens
                    .iter()
                    .for_each(|token| screen.note(&view::users::made_note(token)));
                view::users::made(&tokens)
            }
            UserAsk::Tokens => view::users::tokens(&tokens, screen.style),
            UserAsk::Revoke { number } => format!("token {number} is good no more\n"),
        };
        screen.result(&text)?;
    }
    Ok(0)
}

/// From the terminal, twice and without showing it; else the first line of standard input.
fn password() -> Result<Password, CliError> {
    let stdin = std::io::stdin();
    let password = if stdin.is_terminal() {
        let first = hidden("password: ")?;
        if hidden("once more: ")? != first {
            return Err(CliError::usage("the two passwords differ; nothing was changed"));
        }
        first
    } else {
        line()?
    };
    if password.is_empty() {
        let rule = "no password came: type it, or write it to standard input; nothing was changed";
        return Err(CliError::usage(rule));
    }
    let password = Password::new(password);
    password.check().map_err(CliError::usage)?;
    Ok(password)
}

fn line() -> Result<String, CliError> {
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|error| CliError::usage(format!("the password cannot be read: {error}")))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks with the terminal's echo off, and puts it back.
fn hidden(prompt: &str) -> Result<String, CliError> {
    let stdin = std::io::stdin();
    let cannot = |error| CliError::failed(format!("the terminal does not hide what is typed: {error}"));
    let before = tcgetattr(&stdin).map_err(cannot)?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    quiet.local_modes.insert(LocalModes::ECHONL);
    tcsetattr(&stdin, OptionalActions::Flush, &quiet).map_err(cannot)?;
    super::super::screen::prompt(prompt);
    let typed = line();
    tcsetattr(&stdin, OptionalActions::Flush, &before).map_err(cannot)?;
    typed
}
