#!/usr/bin/env bash
# Makes mistakes on purpose, one at a time, each of which a model has to notice.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

missed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
while IFS='|' read -r model file what change; do
    output=$(MISTAKE="$file $change" schedules/run.sh "${1:-1000}" "$model" 2>"$log" || true)
    found=$(grep -oE 'FAILED in schedule [0-9]+|[0-9]+ schedules in' <<<"$output") || {
        # Such as that the text to be replaced is not there any more.
        printf '%s: NOT MADE\n%s\n' "$what" "$output"
        cat "$log"
        exit 2
    }
    [[ $found == FAILED* ]] || { found=MISSED && missed=1; }
    printf '%s: %s\n' "$what" "${found#FAILED in }"
done <<'END'
threads share|nbd-blocking/src/link/reading.rs|a thread that stops reading wakes no other|/state.inbox = Some\(inbox\);/,/leave_server/ { /pass_on/d }
threads share|nbd-blocking/src/link/reading.rs|the rest of a payload is for no caller in particular|s/state.reader = Some\(caller\);/let _ = caller;/
threads share|nbd-blocking/src/link/table.rs|room for a request wakes no caller|/fn wake_first_for_room/,/^    }/ s/caller.wake.notify_one\(\);//
changes|nbd-blocking/src/range_guard.rs|the end of a change does not wake the threads that have to read for it|s/waiting.for_each\(Holder::notify\)/drop(waiting)/
changes|nbd-blocking/src/range_guard.rs|a change that is left in flight has ended|/fn leave_to/,/^    }/ s/holder.in_flight.push\(.*\)/drop(holder)/
threads of|nbd-blocking/src/host/threads.rs|a task is left to an idle thread that has another|s/work.idle > work.jobs.len\(\)/work.idle > 0/
threads of|nbd-blocking/src/host/threads.rs|idle threads are not woken at the end|/fn release_idle\(&self\) \{$/,/^    }/ { /notify_all/d }
tasks share a|nbd-io/src/client/tasks/link/table.rs|a task that has its reply passes the role on to no other|/fn release\(/,/^    }/ s/self.pass_on\(\);/self.poller = None;/
tasks share a|nbd-io/src/server/jobs.rs|a job that is done does not wake the connection|s/state.waker.take\(\)$/None::<Waker>/
tasks share a|nbd-io/src/server/jobs.rs|a thread is started only if none runs and no result waits|s/let start = state.runners < self.width;/let start = state.runners == 0 \&\& state.done.is_empty();/
memory comes back|nbd-io/src/server/budget.rs|memory that came back before there was a task to wake|/It may have been given back/,/^        };/ s/self.budget.take\(more, all\)/false/
stopped|nbd-io/src/server/registry.rs|the end is looked for before it is waited for|/fn poll_until/,/^    }/ s/let mut state = lock\(&self.registry.state\);/let ended = done(\&lock(\&self.registry.state)); let mut state = lock(\&self.registry.state);/;/fn poll_until/,/^    }/ s/if done\(&state\)/if ended/
END
exit "$missed"
