//! `gateway user …`, `gateway token …`: users and tokens of gateways.

use std::io::{BufRead, IsTerminal};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::super::CommonOptions;
use super::super::connect::Connection;
use super::super::request::follow;
use super::super::screen::{CliError, Screen};
use crate::users::Password;
use crate::view;
use swarm_shared::api::{AdminRequest, Event, UserRequest};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Add or remove a user
    User {
        #[command(subcommand)]
        verb: UserVerb,
    },
    /// List the users
    Users,
    /// Make a token for a program, or revoke one
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Token {
        #[command(subcommand)]
        verb: Option<TokenVerb>,
        /// The user whose token it is
        #[arg(required = true)]
        name: Option<String>,
        /// How many days it is valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3_650))]
        days: u32,
        /// What it is for, to tell tokens apart
        #[arg(long, value_name = "TEXT", default_value = "")]
        label: String,
    },
    /// List valid tokens by number, without the tokens themselves
    Tokens,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum UserVerb {
    /// Add a user, or change a password; it is asked for, or read from standard input
    Add {
        /// Letters, digits and . _ - @ +
        name: String,
    },
    /// Remove a user; all tokens and logins of the user end at once
    Remove {
        /// The user's name
        name: String,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum TokenVerb {
    /// Revoke a token
    Revoke {
        /// Its number, as `gateway tokens` shows it
        #[arg(value_name = "ID", value_parser = parse_token_number)]
        number: u64,
    },
}

fn parse_token_number(text: &str) -> Result<u64, String> {
    let rule = "not the number of a token; `ground-station gateway tokens` shows them";
    text.parse().map_err(|_not_one| rule.to_owned())
}

pub(super) async fn run(verb: Verb, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    let ask = match verb {
        Verb::User {
            verb: UserVerb::Add { name },
        } => {
            crate::users::validate_name(&name).map_err(CliError::usage)?;
            let password = read_password()?;
            UserRequest::Add { name, password }
        }
        Verb::User {
            verb: UserVerb::Remove { name },
        } => UserRequest::Remove { name },
        Verb::Users => UserRequest::List,
        Verb::Token {
            verb: Some(TokenVerb::Revoke { number }),
            ..
        } => UserRequest::Revoke { number },
        Verb::Token {
            verb: None,
            name,
            days,
            label,
        } => UserRequest::MakeToken {
            name: name.unwrap_or_default(),
            days,
            label,
        },
        Verb::Tokens => UserRequest::Tokens,
    };
    let connection = Connection::open(common, "gateway", screen).await?;
    let outcome = send_request(&connection, ask, screen).await;
    connection.close().await;
    outcome
}

async fn send_request(
    connection: &Connection,
    ask: UserRequest,
    screen: &mut Screen,
) -> Result<u8, CliError> {
    let mut users = Vec::new();
    let mut tokens = Vec::new();
    let request = AdminRequest::Users(ask.clone());
    let ended = follow(&connection.fleet, request, screen, |event, _screen| {
        if let Some(Event::User(user)) = event {
            users.push(user.clone());
        } else if let Some(Event::Token(token)) = event {
            tokens.push(token.clone());
        }
        Ok(())
    })
    .await?;
    ended.into_result()?;
    if !screen.json {
        let text = match ask {
            UserRequest::Add { .. } | UserRequest::Remove { .. } => view::users::user_change_lines(&users),
            UserRequest::List => view::users::users_table(&users, screen.style),
            UserRequest::MakeToken { .. } => {
                tokens
                    .iter()
                    .for_each(|token| screen.print_note(&view::users::new_token_note(token)));
                view::users::new_token_lines(&tokens)
            }
            UserRequest::Tokens => view::users::tokens_table(&tokens, screen.style),
            UserRequest::Revoke { number } => format!("token {number} is revoked\n"),
            _ => String::new(),
        };
        screen.print_result(&text)?;
    }
    Ok(0)
}

/// Reads a password twice from the terminal without echo, or else the first line of standard input.
fn read_password() -> Result<Password, CliError> {
    let stdin = std::io::stdin();
    let password = if stdin.is_terminal() {
        let first = read_hidden("password: ")?;
        if read_hidden("once more: ")? != first {
            return Err(CliError::usage("the two passwords differ; nothing was changed"));
        }
        first
    } else {
        read_line()?
    };
    if password.is_empty() {
        let rule = "no password came: type it, or write it to standard input; nothing was changed";
        return Err(CliError::usage(rule));
    }
    let password = Password::new(password);
    password.validate().map_err(CliError::usage)?;
    Ok(password)
}

fn read_line() -> Result<String, CliError> {
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|error| CliError::usage(format!("the password cannot be read: {error}")))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Prompts with the terminal's echo off, and restores it.
fn read_hidden(prompt: &str) -> Result<String, CliError> {
    let stdin = std::io::stdin();
    let cannot = |error| CliError::failed(format!("the terminal does not hide what is typed: {error}"));
    let before = tcgetattr(&stdin).map_err(cannot)?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    quiet.local_modes.insert(LocalModes::ECHONL);
    tcsetattr(&stdin, OptionalActions::Flush, &quiet).map_err(cannot)?;
    super::super::screen::prompt(prompt);
    let typed = read_line();
    tcsetattr(&stdin, OptionalActions::Flush, &before).map_err(cannot)?;
    typed
}
