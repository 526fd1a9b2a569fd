//! Filling what is limited.

use tierbox_core::Limit;

use super::{Canary, attacks};
use crate::case::{Verdict, ensure};
use crate::subject::{Subject, within};

attacks! { "quota":
    e10_sparse_fill [LimitDisk] "Sparse files do not get around the disk limit.";
    e10_every_writable_place [LimitDisk] "All writable places together hold no more than the disk limit.";
    e11_inode_flood [LimitInodes] "A flood of files in all writable places together ends at the limit, and the sandbox is stopped in time.";
}

async fn e10_sparse_fill(s: Subject, _: Canary) -> Verdict {
    let own = s.another(&|spec| spec.limits.disk = Some(Limit::required(8 << 20))).await?;
    let script = "truncate -s 1T sparse 2>/dev/null; i=0; while [ $i -lt 40 ]; do dd if=/dev/zero of=sparse bs=1M count=1 seek=$((i*1000)) conv=notrunc 2>/dev/null || exit 3; i=$((i+1)); done";
    let filled = own.run(own.shell(script)).await?;
    ensure!(!filled.success(), "40 MiB were written under a limit of 8 MiB");
    own.sh("rm -f sparse; echo free > file").await?;
    own.stop().await
}

async fn e10_every_writable_place(s: Subject, _: Canary) -> Verdict {
    let own = s.another(&|spec| spec.limits.disk = Some(Limit::required(8 << 20))).await?;
    let script = "for d in . /tmp /var/tmp /dev/shm \"$HOME\" /run /var /dev /; do dd if=/dev/zero of=$d/fill bs=64k count=400 2>/dev/null; done; \
                  for d in . /tmp /var/tmp /dev/shm \"$HOME\" /run /var /dev /; do stat -c %s $d/fill 2>/dev/null; done; :";
    let sizes = own.text(script).await?;
    let total: u64 = sizes.lines().filter_map(|line| line.parse::<u64>().ok()).sum();
    ensure!(total <= 9 << 20, "{total} bytes were written in all places together under a limit of {}", 8 << 20);
    ensure!(total > 1 << 20, "nothing could be written, so nothing was tried: {sizes:?}");
    own.stop().await
}

async fn e11_inode_flood(s: Subject, _: Canary) -> Verdict {
    let own = s.another(&|spec| spec.limits.inodes = Some(Limit::required(5000))).await?;
    // Wherever files can be made: each place by itself, since some may be the same.
    let script = "n=0; for d in . /tmp /var/tmp /dev/shm \"$HOME\" /run /var /dev /; do n=$((n+1)); mkdir $d/many$n 2>/dev/null || continue; \
                  (cd $d/many$n && seq 20000 | xargs touch 2>/dev/null); ls $d/many$n; done | wc -l";
    let flood = own.run(own.shell(script)).await?;
    let made: u64 = flood.stdout.text().trim().parse().unwrap_or(u64::MAX);
    // A machine's own directories may be allowed for on top.
    ensure!((100..=5200).contains(&made), "{made} files were made under a limit of 5000");
    within(s.patience, "the stop of a sandbox full of files", own.stop()).await?
}
