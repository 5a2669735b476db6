//! `nbd generate`: manual pages and completions, from the same table of options that `--help` has.

use crate::{
    cli::Cli,
    outcome::{Answer, Context, Error, Result},
    output,
};
use clap::{Args, Command, CommandFactory, Subcommand};
use clap_complete::Shell;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Print completions for a shell, or write manual pages.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nbd generate completions bash > /etc/bash_completion.d/nbd
  nbd generate man /usr/local/share/man/man1")]
pub(crate) struct Generate {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write a manual page for each command.
    Man {
        /// A directory that exists.
        directory: PathBuf,
    },
}

impl Generate {
    pub(crate) fn run(self) -> Result {
        match self.what {
            What::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "nbd", &mut script);
                let script = String::from_utf8(script);
                output::print(&script.step(|| "cannot write the completions")?)?;
            }
            What::Man { directory } => pages(Cli::command().name("nbd"), "nbd", &directory)?,
        }
        Ok(Answer::Yes)
    }
}

/// Writes the page of a command and those of the commands below it.
fn pages(mut command: Command, title: &str, directory: &Path) -> Result<()> {
    command.build();
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        if below.get_name() != "help" {
            let title = format!("{title}-{}", below.get_name());
            pages(below.clone(), &title, directory)?;
        }
    }
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command).title(title.to_uppercase());
    man.render(&mut page)
        .step(|| format!("cannot write the page {title}"))?;
    let path = directory.join(format!("{title}.1"));
    fs::write(&path, page).map_err(|error| Error::Step {
        what: format!("cannot write {}", path.display()),
        source: error.into(),
    })
}
