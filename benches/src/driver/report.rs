//! The report: tables on standard output, and the same tables with charts in a folder.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::args::Options;
use super::chart;
use super::machine::{self, Machine};
use super::progress;
use super::table::Section;

/// The report so far.
pub(crate) struct Report {
    folder: PathBuf,
    text: String,
    failures: usize,
}

impl Report {
    pub(crate) fn new(options: &Options, machine: Machine, missing: &[String]) -> Result<Self> {
        fs::create_dir_all(&options.out).with_context(|| format!("cannot make {}", options.out.display()))?;
        let mut report = Self { folder: options.out.clone(), text: String::new(), failures: 0 };
        let Machine { cpu, kernel, rustc, libc, date } = machine;
        let (cores, slice) = (machine::cores().len(), options.slice().as_millis());
        let (server, load) = (options.server_core, options.load_core);
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        report.put(&format!(
            "# kittiwake beside other runtimes\n\n\
             {cpu}, {cores} cores, Linux {kernel}, {rustc}, {libc}; {date}.\n\
             Servers of one worker are on core {server}, the load is on core {load}; slices of {slice} ms.\n\n    cargo run --release -- {}\n",
            arguments.join(" ")
        ));
        if options.quick {
            report.put("\nA quick look: too few and too short slices for figures to quote.\n");
        }
        report.leave_out(missing);
        Ok(report)
    }

    /// Names the measurements that are left out.
    pub(crate) fn leave_out(&mut self, what: &[String]) {
        what.iter().for_each(|what| self.put(&format!("\nLeft out: {what}.\n")));
    }

    /// Adds a job's sections, and prints them.
    pub(crate) fn add(&mut self, job: &str, sections: Vec<Section>) -> Result<()> {
        for Section { title, notes, table, chart } in sections {
            let again = format!("Again: `cargo run --release -- --jobs {job}`.");
            let mut text = format!("\n## {title}\n\n{}\n{again}\n\n{}", notes.join("\n"), table.to_markdown());
            if let Some(chart) = chart {
                let file = format!("{job}.svg");
                chart::draw(&self.folder.join(&file), &chart)?;
                text += &format!("\n![{title}]({file})\n");
            }
            self.put(&text);
        }
        Ok(())
    }

    /// Reports that a job failed. The other jobs go on.
    pub(crate) fn add_failure(&mut self, job: &str, error: &anyhow::Error) {
        self.failures += 1;
        self.put(&format!("\n## {job}\n\nFailed: {error:#}\n"));
    }

    /// Writes the file. Returns true if no job failed.
    pub(crate) fn finish(self) -> Result<bool> {
        let file = self.folder.join("report.md");
        fs::write(&file, &self.text).with_context(|| format!("cannot write {}", file.display()))?;
        eprintln!("written: {}, with a chart for each job beside it", file.display());
        Ok(self.failures == 0)
    }

    fn put(&mut self, text: &str) {
        progress::done();
        print!("{text}");
        self.text += text;
    }
}
