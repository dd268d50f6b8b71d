//! `towpath bypass`: break glass. Through the agent where one runs; without one, by the kernel's tables and the state
//! directory alone, since that is when it is wanted most.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use clap::{Args, Subcommand};
use towpath_dataplane::nft::NetlinkBackend;

use super::client::ClientError;
use super::error::{CommandError, Exit};
use super::output::{Cell, Format, Output};
use super::status::span;
use super::uninstall::confirm;
use super::{OutputArguments, SocketArguments, client, remark};
use crate::agent::backend::refuse_owned;
use crate::agent::bypass::{self, Book, BypassScope, Bypasses, Clock, Opening};
use crate::agent::bypass_server::Closing;
use crate::agent::bypassing::BypassAnswer;
use crate::agent::config::DEFAULT_STATE_DIRECTORY;
use crate::agent::report::Bypass;
use crate::agent::state::StateDirectory;
use crate::applier::{self, BypassOutcome};

/// Where the system's log listens.
const SYSTEM_LOG: &str = "/dev/log";
/// A log that takes longer is not waited for.
const LOG_PATIENCE: Duration = Duration::from_secs(1);
/// Its priority: severity 4 of facility 3 (RFC 5424, section 6.2.1).
const WARNING_OF_DAEMON: u8 = 3 * 8 + 4;

#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BypassArguments {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Lets pass what policy denies, for a bounded time. Sources are checked all the same. Connections that begin
    /// meanwhile go on afterwards.
    On(OnArguments),
    /// Ends it now: one scope, or all of them. Connections that began meanwhile go on.
    Off(OffArguments),
    /// Lists what is open.
    List(Place),
}

/// Where the agent is, or was.
#[derive(Clone, Debug, Args)]
struct Place {
    /// Directory in which the agent keeps what must outlive it.
    #[arg(
        long = "state-dir",
        env = "TOWPATH_STATE_DIRECTORY",
        default_value = DEFAULT_STATE_DIRECTORY,
        value_name = "DIR"
    )]
    state_directory: PathBuf,
    #[command(flatten)]
    socket: SocketArguments,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Clone, Debug, Args)]
struct OnArguments {
    #[command(flatten)]
    scope: ScopeArguments,
    /// How long, at most 24 h: 90s, 15m, 1h30m.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    time: Duration,
    /// Why; it is logged and shown.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Debug, Args)]
struct OffArguments {
    #[command(flatten)]
    scope: ScopeArguments,
    #[command(flatten)]
    place: Place,
}

/// One of them.
#[derive(Clone, Debug, Args)]
#[group(multiple = false)]
struct ScopeArguments {
    /// One pod of this node.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pod: Option<String>,
    /// All pods of a namespace on this node, those that start later too while an agent runs.
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// One address of a pod of this node.
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// The whole node.
    #[arg(long)]
    node: bool,
}

impl ScopeArguments {
    fn scope(self) -> Result<Option<BypassScope>, CommandError> {
        if let Some(pod) = self.pod {
            let Some((namespace, name)) = pod.split_once('/') else {
                return Err(CommandError::Usage(format!(
                    "--pod {pod:?} must be NAMESPACE/NAME"
                )));
            };
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            return Ok(Some(BypassScope::Pod { namespace, name }));
        }
        Ok(match (self.namespace, self.address, self.node) {
            (Some(namespace), ..) => Some(BypassScope::Namespace { namespace }),
            (_, Some(address), _) => Some(BypassScope::Address { address }),
            (_, _, true) => Some(BypassScope::Node),
            (None, None, false) => None,
        })
    }
}

/// Reads `1h30m`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no time like 90s, 15m or 1h30m");
    let mut seconds: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, unit) = rest.split_at(end);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let factor = match unit.chars().next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            _ => return Err(bad()),
        };
        let part = number.checked_mul(factor).ok_or_else(bad)?;
        seconds = seconds.checked_add(part).ok_or_else(bad)?;
        rest = &unit[1..];
    }
    let time = Duration::from_secs(seconds);
    if time.is_zero() || time > bypass::MOST_TIME {
        return Err("the time must be between 1 s and 24 h".to_owned());
    }
    Ok(time)
}

pub(super) fn run(arguments: BypassArguments) -> Result<Exit, CommandError> {
    match arguments.action {
        None => list(&arguments.place),
        Some(Action::List(place)) => list(&place),
        Some(Action::On(arguments)) => on(arguments),
        Some(Action::Off(OffArguments { scope, place })) => {
            let wish = Wish::Close(scope.scope()?);
            finish(&change(&wish, &place)?, &wish, &place)
        }
    }
}

fn on(arguments: OnArguments) -> Result<Exit, CommandError> {
    let OnArguments {
        scope,
        time,
        reason,
        yes,
        place,
    } = arguments;
    let Some(scope) = scope.scope()? else {
        let text = "say what to open: --pod, --namespace, --address or --node";
        return Err(CommandError::Usage(text.to_owned()));
    };
    let opening = Opening {
        scope,
        seconds: time.as_secs(),
        reason,
    };
    opening.check().map_err(CommandError::Usage)?;
    let (scope, time) = (&opening.scope, span(opening.seconds));
    confirm(
        yes,
        &format!("a bypass lets pass what policy denies for {scope}"),
        &format!("let pass what policy denies for {scope}, for {time}?"),
    )?;
    let wish = Wish::Open(opening);
    finish(&change(&wish, &place)?, &wish, &place)
}

/// What is to be done.
#[derive(Clone, Debug)]
enum Wish {
    Open(Opening),
    Close(Option<BypassScope>),
}

/// Through the agent, or without it when nobody serves its socket.
fn change(wish: &Wish, place: &Place) -> Result<BypassAnswer, CommandError> {
    let socket = &place.socket.socket;
    let answer = match wish {
        Wish::Open(opening) => client::post(socket, "/v1/bypass/on", opening),
        Wish::Close(scope) => {
            let scope = scope.clone();
            client::post(socket, "/v1/bypass/off", &Closing { scope })
        }
    };
    match answer {
        Err(ClientError::Connect { source, .. })
            if source.kind() != ErrorKind::PermissionDenied =>
        {
            change_alone(wish, place)
        }
        Err(ClientError::Deadline) => Err(CommandError::Failed(
            "the agent does not answer; end its process, which leaves the rules as they are, and try again"
                .to_owned(),
        )),
        answer => Ok(answer?),
    }
}

/// Without an agent. The lock keeps one from starting meanwhile; tables that somebody owns have an agent elsewhere.
fn change_alone(wish: &Wish, place: &Place) -> Result<BypassAnswer, CommandError> {
    let directory = &place.state_directory;
    let _state = StateDirectory::open(directory)?;
    let mut backend = NetlinkBackend::open()?;
    refuse_owned(&mut backend)?;
    let mut remarks = vec!["no agent runs: done in the kernel's tables alone".to_owned()];
    let clock = Clock::read();
    let mut bypasses = Bypasses::load(directory, clock).unwrap_or_else(|error| {
        remarks.push(format!("cannot read what was open before: {error}"));
        Bypasses::default()
    });
    let book = read_book(place, &mut remarks);
    bypasses.expire(clock.now);
    let closed = match wish {
        Wish::Open(opening) => {
            let opening = opening.clone();
            bypasses
                .open(opening, clock)
                .map_err(CommandError::Failed)?;
            Vec::new()
        }
        Wish::Close(scope) => bypasses.close(scope.as_ref()),
    };
    // The kernel comes first: a full disk is no reason to stay closed.
    let outcome = applier::bypass(&mut backend, &bypasses.bypassed(&book))?;
    if outcome == BypassOutcome::OldTables {
        bypasses = Bypasses::default();
    } else {
        remarks.extend(log_alone(Path::new(SYSTEM_LOG), wish, &closed).err());
        let stored = bypasses.store(directory);
        remarks.extend(stored.err().map(|error| bypass::unnoted(directory, &error)));
    }
    Ok(BypassAnswer {
        outcome,
        bypasses: bypasses.report(&book, clock.now),
        closed: closed.into_iter().map(|bypass| bypass.scope).collect(),
        remarks,
    })
}

/// Tells the system's log, since no agent does. The error is a remark.
fn log_alone(log: &Path, wish: &Wish, closed: &[bypass::Bypass]) -> Result<(), String> {
    let lines: Vec<String> = match wish {
        Wish::Open(Opening {
            scope,
            seconds,
            reason,
        }) => vec![format!(
            "bypass begins: what policy denies {scope} passes for {seconds} s: {reason}"
        )],
        Wish::Close(_) => closed
            .iter()
            .map(|bypass| {
                format!(
                    "bypass ends: policy is in force again for {}: {}",
                    bypass.scope, bypass.reason
                )
            })
            .collect(),
    };
    let told = UnixDatagram::unbound().and_then(|socket| {
        socket.set_write_timeout(Some(LOG_PATIENCE))?;
        lines.iter().try_for_each(|line| {
            let text = format!("<{WARNING_OF_DAEMON}>towpath[{}]: {line}", process::id());
            socket.send_to(text.as_bytes(), log).map(drop)
        })
    });
    told.map_err(|error| format!("it could not be logged in {}: {error}", log.display()))
}

fn read_book(place: &Place, remarks: &mut Vec<String>) -> Book {
    bypass::load_book(&place.state_directory).unwrap_or_else(|error| {
        remarks.push(format!(
            "cannot read which pod has which address; give --address or --node: {error}"
        ));
        Book::new()
    })
}

/// Says what came of it. Exit status 1 when nothing is open that should be.
fn finish(answer: &BypassAnswer, wish: &Wish, place: &Place) -> Result<Exit, CommandError> {
    for text in &answer.remarks {
        remark(&format!("towpath: {text}"));
    }
    match &answer.outcome {
        BypassOutcome::InForce => {}
        BypassOutcome::NoTables => remark(
            "towpath: there are no tables of towpath, so nothing is enforced on this node; an agent that starts goes by this",
        ),
        BypassOutcome::OldTables => {
            let next = if answer.bypasses.is_empty() {
                "`towpath uninstall` opens the node"
            } else {
                "it comes into force with new ones, once the agent's source is in sync"
            };
            let text = format!("the tables are of a version without bypass; {next}");
            return Err(CommandError::Failed(text));
        }
        BypassOutcome::Failed(error) => {
            return Err(CommandError::Failed(format!(
                "the kernel did not take it: {error}"
            )));
        }
    }
    let mut output = Output::stdout(place.output.format);
    if output.format() == Format::Table {
        for scope in &answer.closed {
            output.line(&format!("closed: {scope}"))?;
        }
        table(&answer.bypasses, &mut output)?;
    } else {
        output.value(answer)?;
    }
    output.flush()?;
    Ok(match wish {
        Wish::Open(opening) if is_empty(&opening.scope, &answer.bypasses) => {
            remark(&format!(
                "towpath: no address of {} is known on this node, so nothing is open by it yet; --address and --node need no names",
                opening.scope
            ));
            Exit::Failed
        }
        Wish::Open(_) | Wish::Close(_) => Exit::Done,
    })
}

/// Whether a scope that names pods opens no address.
fn is_empty(scope: &BypassScope, bypasses: &[Bypass]) -> bool {
    *scope != BypassScope::Node
        && bypasses
            .iter()
            .any(|bypass| bypass.scope == *scope && bypass.addresses.is_empty())
}

fn list(place: &Place) -> Result<Exit, CommandError> {
    let bypasses: Vec<Bypass> = match client::get(&place.socket.socket, "/bypasses") {
        Err(ClientError::Connect { source, .. })
            if source.kind() != ErrorKind::PermissionDenied =>
        {
            remark("towpath: no agent runs: as the state directory has it");
            list_alone(place)?
        }
        answer => answer?,
    };
    let mut output = Output::stdout(place.output.format);
    if output.format() == Format::Table {
        table(&bypasses, &mut output)?;
    } else {
        output.value(&bypasses)?;
    }
    output.flush()?;
    Ok(Exit::Done)
}

fn list_alone(place: &Place) -> Result<Vec<Bypass>, CommandError> {
    let clock = Clock::read();
    let mut bypasses = Bypasses::load(&place.state_directory, clock).map_err(|error| {
        CommandError::Failed(format!(
            "cannot read what is open in {}: {error}",
            place.state_directory.display()
        ))
    })?;
    bypasses.expire(clock.now);
    let mut remarks = Vec::new();
    let book = read_book(place, &mut remarks);
    for text in &remarks {
        remark(&format!("towpath: {text}"));
    }
    Ok(bypasses.report(&book, clock.now))
}

fn table(bypasses: &[Bypass], output: &mut Output) -> Result<(), CommandError> {
    if bypasses.is_empty() {
        return Ok(output.line("nothing is bypassed")?);
    }
    let row = |bypass: &Bypass| -> Vec<Cell> {
        let addresses: Vec<String> = bypass.addresses.iter().map(ToString::to_string).collect();
        let addresses = match (&bypass.scope, addresses.is_empty()) {
            (BypassScope::Node, _) => "all".to_owned(),
            (_, true) => "-".to_owned(),
            (_, false) => addresses.join(","),
        };
        vec![
            bypass.scope.to_string().into(),
            span(bypass.seconds_left).into(),
            addresses.into(),
            bypass.reason.clone().into(),
        ]
    };
    let rows: Vec<Vec<Cell>> = bypasses.iter().map(row).collect();
    Ok(output.table(&["BYPASSED", "LEFT", "ADDRESSES", "REASON"], &rows)?)
}

/// A bypass in the status of an agent.
pub(super) fn one_line(bypass: &Bypass) -> String {
    format!(
        "{}, {} left: {}",
        bypass.scope,
        span(bypass.seconds_left),
        bypass.reason
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_units_and_an_end() {
        let seconds = |text: &str| parse_time(text).map(|time| time.as_secs()).ok();

        assert_eq!(seconds("90s"), Some(90));
        assert_eq!(seconds("15m"), Some(900));
        assert_eq!(seconds("1h30m"), Some(5_400));
        assert_eq!(seconds("24h"), Some(86_400));
        for bad in [
            "",
            "15",
            "m",
            "-1m",
            "1d",
            "0s",
            "24h1s",
            "99999999999999999999h",
            "1h 2m",
        ] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn without_an_agent_the_systems_log_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let wish = Wish::Open(Opening {
            scope: BypassScope::Node,
            seconds: 90,
            reason: "drill".to_owned(),
        });
        assert!(log_alone(&path, &wish, &[]).is_err());
        let log = UnixDatagram::bind(&path).unwrap();
        let heard = || {
            let mut line = [0; 256];
            let length = log.recv(&mut line).unwrap();
            String::from_utf8_lossy(&line[..length]).into_owned()
        };

        log_alone(&path, &wish, &[]).unwrap();
        let ended = bypass::Bypass {
            scope: BypassScope::Node,
            reason: "drill".to_owned(),
            begun: 0,
            until: 90,
        };
        let begun = heard();
        log_alone(&path, &Wish::Close(None), &[ended]).unwrap();

        let id = process::id();
        assert_eq!(
            begun,
            format!(
                "<28>towpath[{id}]: bypass begins: what policy denies this node passes for 90 s: drill"
            )
        );
        assert_eq!(
            heard(),
            format!(
                "<28>towpath[{id}]: bypass ends: policy is in force again for this node: drill"
            )
        );
    }

    #[test]
    fn one_scope_is_given() {
        let arguments = |pod: Option<&str>, node| ScopeArguments {
            pod: pod.map(str::to_owned),
            namespace: None,
            address: None,
            node,
        };

        let pod = arguments(Some("shop/web"), false).scope().unwrap();
        let (namespace, name) = ("shop".to_owned(), "web".to_owned());
        assert_eq!(pod, Some(BypassScope::Pod { namespace, name }));
        assert_eq!(
            arguments(None, true).scope().unwrap(),
            Some(BypassScope::Node)
        );
        assert_eq!(arguments(None, false).scope().unwrap(), None);
        assert!(arguments(Some("web"), false).scope().is_err());
    }
}
