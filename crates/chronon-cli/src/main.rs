//! The `chronon` command.

fn main() -> std::process::ExitCode {
    chronon_cli::run::<chronon_bank::Bank>()
}
