//! What the demo prints: steps with their time as they happen, and a summary table at the end.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::say;

/// The outcome of one step.
struct Row {
    step: String,
    good: bool,
    detail: String,
}

/// Collects and prints results.
pub struct Report {
    begun: Instant,
    rows: Vec<Row>,
}

impl Report {
    pub fn start() -> Self {
        Self {
            begun: Instant::now(),
            rows: Vec::new(),
        }
    }

    pub fn chapter(&self, title: &str) {
        say(&format!("\n── {title}"));
    }

    pub fn note(&self, line: &str) {
        say(&format!("                {line}"));
    }

    pub fn pass(&mut self, step: &str, detail: &str) {
        self.row(step, true, detail);
    }

    pub fn fail(&mut self, step: &str, detail: &str) {
        self.row(step, false, detail);
    }

    pub fn check(&mut self, step: &str, result: Result<String>) {
        match result {
            Ok(detail) => self.pass(step, &detail),
            Err(err) => self.fail(step, &format!("{err:#}")),
        }
    }

    fn row(&mut self, step: &str, good: bool, detail: &str) {
        say(&format!(
            "{:>6.2} s  {}  {step}: {detail}",
            self.begun.elapsed().as_secs_f64(),
            mark(good)
        ));
        self.rows.push(Row {
            step: step.to_owned(),
            good,
            detail: detail.to_owned(),
        });
    }

    /// Prints the summary; success only if every step held.
    pub fn finish(self) -> ExitCode {
        say("\n── Summary");
        let width = self
            .rows
            .iter()
            .map(|r| r.step.chars().count())
            .max()
            .unwrap_or(0);
        for row in &self.rows {
            say(&format!(
                "  {}  {:<width$}  {}",
                mark(row.good),
                row.step,
                row.detail
            ));
        }
        let failed = self.rows.iter().filter(|r| !r.good).count();
        say(&format!(
            "\n  {} of {} steps held, {:.1} s in all",
            self.rows.len() - failed,
            self.rows.len(),
            self.begun.elapsed().as_secs_f64()
        ));
        if failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

fn mark(good: bool) -> &'static str {
    if good { "ok  " } else { "FAIL" }
}
