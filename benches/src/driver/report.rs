//! What people read: tables on standard output, and the same with charts in a folder.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::args::Options;
use super::chart;
use super::machine::Machine;
use super::progress;
use super::table::Section;

/// The report so far.
#[derive(Debug)]
pub(crate) struct Report {
    folder: PathBuf,
    text: String,
    failures: usize,
}

impl Report {
    pub(crate) fn new(options: &Options, machine: Machine, missing: Vec<String>) -> Self {
        let mut report = Self { folder: options.out.clone(), text: String::new(), failures: 0 };
        let Machine { cpu, cores, kernel, rustc, libc, date } = machine;
        let placing = if options.server_core == options.load_core {
            format!("Servers of one worker and the load share core {}", options.server_core)
        } else {
            format!("Servers of one worker on core {}, the load on core {}", options.server_core, options.load_core)
        };
        report.put(&format!(
            "# kittiwake beside other runtimes\n\n\
             {cpu}, {cores} cores, Linux {kernel}, {rustc}, {libc}; {date}.\n\
             {placing}; slices of {} ms.\n\n    {}\n",
            options.slice().as_millis(),
            options.command
        ));
        if options.quick {
            report.put("\nA quick look: too few and too short slices for figures to quote.\n");
        }
        report.leave_out(&missing);
        report
    }

    /// Says what is not measured.
    pub(crate) fn leave_out(&mut self, what: &[String]) {
        for what in what {
            self.put(&format!("\nLeft out: {what}.\n"));
        }
    }

    /// Adds a job's sections, and prints them.
    pub(crate) fn add(&mut self, job: &str, sections: Vec<Section>) -> Result<()> {
        for section in sections {
            let Section { title, notes, table, chart } = section;
            let again = format!("Again: `cargo run --release -- --jobs {job}`.");
            let mut text = format!("\n## {title}\n\n{}\n{again}\n\n{}", notes.join("\n"), table.to_markdown());
            if let Some((name, chart)) = chart {
                let file = format!("{name}.svg");
                fs::create_dir_all(&self.folder).with_context(|| format!("cannot make {}", self.folder.display()))?;
                chart::draw(&self.folder.join(&file), &chart)?;
                text += &format!("\n![{title}]({file})\n");
            }
            self.put(&text);
        }
        Ok(())
    }

    /// Says that a job failed; the others go on.
    pub(crate) fn failed(&mut self, job: &str, error: &anyhow::Error) {
        self.failures += 1;
        self.put(&format!("\n## {job}\n\nFailed: {error:#}\n"));
    }

    /// Writes the file. Returns whether no job failed.
    pub(crate) fn finish(self) -> Result<bool> {
        fs::create_dir_all(&self.folder).with_context(|| format!("cannot make {}", self.folder.display()))?;
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
