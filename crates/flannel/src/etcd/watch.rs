//! What changes, as lines: told by the store that daemons watch, which goes on where it was after a lost connection.

use std::collections::BTreeMap;
use std::io::Write;

use flannel_core::config::{ConfigRules, NetworkConfig};
use flannel_core::lease::{LeaseEvent, LeaseKey, Record};
use flannel_daemon::log;
use flannel_store::etcd::operator::Operator;
use flannel_store::etcd::{EtcdStore, Options};
use flannel_store::{Host, Store as _, StoreEvent};

use super::config::summary;
use super::json::{self, ChangeView, RecordView};
use super::words::list;
use super::{EtcdError, table};
use crate::report::{self, plain};

/// Tells changes until it cannot be heard any more. What is wrong at the start is an error.
pub(super) async fn watch(
    operator: &Operator,
    options: Options,
    json: bool,
    out: &mut impl Write,
) -> Result<(), EtcdError> {
    operator.census().await?;
    let store = EtcdStore::new(options, Host::here());
    let mut events = store.watch();
    let mut teller = Teller { json, out, knows_config: false, records: None };
    while let Some(event) = events.recv().await {
        match event {
            StoreEvent::Config(config) => teller.on_config(&config)?,
            StoreEvent::Leases(event) => teller.on_leases(event)?,
            StoreEvent::Overrides(_) | StoreEvent::Waits(_) => {}
        }
    }
    Ok(())
}

struct Teller<'a, W> {
    json: bool,
    out: &'a mut W,
    /// Whether the config was told of, or that there is none.
    knows_config: bool,
    /// The records seen last; none before the first list.
    records: Option<BTreeMap<LeaseKey, Record>>,
}

impl<W: Write> Teller<'_, W> {
    /// The first config is no change, unless there is none.
    fn on_config(&mut self, config: &Result<String, String>) -> Result<(), EtcdError> {
        let is_first = !std::mem::replace(&mut self.knows_config, true);
        if is_first && config.is_ok() { Ok(()) } else { self.tell_config(config) }
    }

    fn on_leases(&mut self, event: LeaseEvent) -> Result<(), EtcdError> {
        match event {
            LeaseEvent::Snapshot(records) => self.on_snapshot(records),
            LeaseEvent::Put(record) => self.on_put(&record),
            LeaseEvent::Remove(key) => self.on_remove(&key),
        }
    }

    /// A list that is not the first one tells what was missed.
    fn on_snapshot(&mut self, records: Vec<Record>) -> Result<(), EtcdError> {
        let Some(known) = &self.records else {
            report::text(&format!("watching: {} records\n", records.len()));
            self.records = Some(records.into_iter().map(|record| (record.key.clone(), record)).collect());
            return Ok(());
        };
        let there = |key: &LeaseKey| records.iter().any(|record| record.key == *key);
        let gone: Vec<LeaseKey> = known.keys().filter(|key| !there(key)).cloned().collect();
        let news: Vec<Record> = records.into_iter().filter(|record| known.get(&record.key) != Some(record)).collect();
        gone.iter().try_for_each(|key| self.on_remove(key))?;
        news.iter().try_for_each(|record| self.on_put(record))
    }

    fn on_put(&mut self, record: &Record) -> Result<(), EtcdError> {
        let before = self.records.get_or_insert_default().insert(record.key.clone(), record.clone());
        let event = match before {
            None => "new",
            Some(before) if before == *record => "renewed",
            Some(_) => "changed",
        };
        self.tell_record(event, record)
    }

    fn on_remove(&mut self, key: &LeaseKey) -> Result<(), EtcdError> {
        let before = self.records.get_or_insert_default().remove(key);
        before.map_or(Ok(()), |record| self.tell_record("removed", &record))
    }

    fn tell_record(&mut self, event: &'static str, record: &Record) -> Result<(), EtcdError> {
        let public_ip = record.lease.as_ref().map(|lease| lease.public_ip).unwrap_or_default();
        if self.json {
            let record = Some(RecordView::of(record, &public_ip));
            return self.tell_json(&ChangeView { time: log::now(), event, record, text: None, problem: None });
        }
        let what = match table::flaws(record).next() {
            Some(flaw) if record.lease.is_err() => format!("broken: {flaw}"),
            _ => format!("{}  {}  {}", list(&public_ip), table::backend(record), table::vteps(record)),
        };
        self.line(event, &format!("{}  {what}", plain(record.key.as_str())))
    }

    fn tell_config(&mut self, config: &Result<String, String>) -> Result<(), EtcdError> {
        let read = |text: &String| NetworkConfig::parse(text, ConfigRules::Etcd).map_err(|error| error.to_string());
        let read = config.as_ref().map_err(Clone::clone).and_then(read);
        if self.json {
            let (text, problem) = (config.as_deref().ok(), read.err());
            return self.tell_json(&ChangeView { time: log::now(), event: "config", record: None, text, problem });
        }
        let text = read.map_or_else(|problem| format!("broken: {problem}"), |(config, _)| summary(&config));
        self.line("config", &plain(&text))
    }

    fn tell_json(&mut self, change: &ChangeView<'_>) -> Result<(), EtcdError> {
        self.out.write_all(json::change(change).as_bytes())?;
        Ok(self.out.flush()?)
    }

    fn line(&mut self, event: &str, text: &str) -> Result<(), EtcdError> {
        writeln!(self.out, "{}  {event:7}  {text}", log::now())?;
        Ok(self.out.flush()?)
    }
}
