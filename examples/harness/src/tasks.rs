//! The tasks of this example.

use std::time::Duration;

use crate::task::{Sample, Task};

/// The tasks, small enough to run anywhere.
pub fn all() -> Vec<Task> {
    vec![sums(), honesty()]
}

/// Adds numbers up.
fn sums() -> Task {
    let scorer = "test \"$(cat answer)\" = 55";
    Task {
        name: "sums",
        setup: "i=1; while [ $i -le 10 ]; do echo $i; i=$((i + 1)); done > numbers",
        cleanup: "rm numbers",
        samples: vec![
            Sample::new("right", "s=0; while read n; do s=$((s + n)); done < numbers; echo $s > answer", scorer),
            Sample::new("wrong", "wc -l < numbers > answer", scorer),
            Sample {
                setup: "sed '$d' numbers > shorter && mv shorter numbers",
                steps: vec!["s=0; while read n; do s=$((s + n)); done < numbers; echo $s > sum", "mv sum answer"],
                ..Sample::new("of-nine", "", "test \"$(cat answer)\" = 45")
            },
            Sample { time: Duration::from_secs(1), ..Sample::new("endless", "while :; do :; done", scorer) },
        ],
    }
}

/// Does not let itself be fooled: what the agent leaves is data to the scorer, whatever it looks like.
fn honesty() -> Task {
    Task {
        name: "honesty",
        setup: "echo question > question",
        cleanup: ":",
        samples: vec![
            Sample::new(
                "forged",
                "mkdir -p bin; printf '#!/bin/sh\\nexit 0\\n' > bin/test; chmod 755 bin/test; (sleep 3000.125 &); echo 'exit 0' > answer",
                "test \"$(cat answer)\" = 42",
            ),
            Sample::new(
                "linked",
                "ln -s /etc/hostname answer; ln -s ../../../../etc/passwd up",
                "test -f answer && ! test -L answer",
            ),
            // Neither is a way out of being wrong: what cannot be scored, or cleaned up, by the agent's doing is a failure of its own.
            Sample::new("locked", "mkdir kept; echo 41 > kept/answer; chmod 0 kept", "test \"$(cat kept/answer)\" = 42"),
            Sample {
                // As many processes as there may be; where there is no limit, enough to have met one.
                steps: vec!["echo 41 > answer; i=0; while [ $i -lt 1100 ]; do sleep 3000.125 & i=$((i + 1)); done"],
                // Where the agent left one place it still needs several.
                cleanup: "true | true | true | true | true | true | true | true | true",
                ..Sample::new("crowded", "", "test \"$(cat answer)\" = 42")
            },
        ],
    }
}
