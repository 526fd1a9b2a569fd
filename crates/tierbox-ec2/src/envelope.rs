//! What SSM runs: a small script around the one that is meant. It makes that one run at most once, away from SSM's time limits and
//! pipes, and tells its bytes exactly.
//!
//! SSM may deliver a script twice (a call that failed may have taken effect), kills what is beyond its time, holds the call for
//! children that keep a pipe, reboots for exit code 194, cuts output at 24,000 characters, and replaces `{{…}}`. So the directory
//! that is named by the run's id is its claim; the script runs in a session of its own, with files for output; whoever is sent
//! again finds the claim and tells what became of it; everything variable travels as Base64; and the exit code is always 0.

use std::fmt::Write as _;

use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;

/// Where runs live in the machine. Root alone enters it.
pub(crate) const HOME: &str = "/var/lib/tierbox-ssm";

/// The most bytes of output that come back inline: SSM keeps 24,000 characters, and Base64 makes four of three bytes.
pub(crate) const INLINE: usize = 16_500;
/// How often one looks, a third of a second apart, for a run that has no end and that nobody seems to hold: a busy machine needs a while
/// to write down who does, and what has just ended to write its end.
const TRIES: usize = 10;
/// What is kept of standard error.
const COMPLAINT: usize = 2_000;

/// How script and input get into the machine.
pub(crate) enum Payload<'a> {
    /// It was there before: only tell what became of it.
    None,
    /// In the command itself.
    Inline { script: &'a str, stdin: &'a [u8] },
    /// From an address, where both lie one after the other.
    Address { url: &'a str, sha256: &'a str, script: usize },
}

/// What is sent.
pub(crate) struct Envelope<'a> {
    /// The run's id: lower-case hexadecimal digits.
    pub(crate) id: &'a str,
    pub(crate) payload: Payload<'a>,
    /// How long to wait for its end before telling that it runs.
    pub(crate) hold_ms: u64,
    /// Where output goes that is too long to come back inline.
    pub(crate) put: Option<&'a str>,
    /// Runs that nobody asks for any more.
    pub(crate) spent: &'a [String],
    /// How long the machine lives from now on, in seconds; 0 leaves it.
    pub(crate) life: u64,
}

const HEAD: &str = r#"umask 077;PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin;LC_ALL=C;export PATH LC_ALL
say(){ echo "tierbox-ssm 1 $I $*"; }
B=@HOME@;D=$B/$I
born(){ { read -r s </proc/$1/stat;} 2>/dev/null||return 1;set -f;set -- $s;set +f;[ "$3" != Z ]&&b=${22};}
alive(){ p=;q=;[ ! -s $D/r ]||read -r p q <$D/r;[ -n "$q" ]&&born $p&&[ $b = $q ];}
[ -d $B ]||mkdir $B 2>/dev/null
"#;

/// The machine's timer (see `timer`) reads this.
const RENEW: &str = r#"read -r up rest </proc/uptime;[ ! -d /run/tierbox ]||echo $((${up%.*}+@LIFE@)) >/run/tierbox/until
"#;

/// Fetches or sends by an address that no command line shows.
const TRANSFER: &str = r#"fetch(){ if command -v curl >/dev/null;then echo "url=\"$U\""|curl -K - -sS -f --retry 3 --max-time 600 "$@" 2>$D/w
elif command -v python3 >/dev/null;then echo "$U"|python3 -c 'import sys,urllib.request as r
u=sys.stdin.readline().strip();o,f=sys.argv[1:]
if o=="-o":
 a=r.urlopen(u,timeout=60);w=open(f,"wb")
 while True:
  b=a.read(1<<20)
  if not b: break
  w.write(b)
else:
 r.urlopen(r.Request(u,open(f,"rb").read(),{"Content-Type":"application/octet-stream"},method="PUT"),timeout=600)' "$@" 2>$D/w
else echo "neither curl nor python3" >$D/w;return 99;fi;}
"#;

/// Who holds a run, in `r`: first the envelope that claimed it, then its runner; by the time when it began, since a process that has not
/// come so far as to be what it will be has no other mark, and a number is used again.
const HOLD: &str = "born $$&&echo $$ $b >$D/r\n";

/// The runner says by the FIFO that it is done: whoever waits then hears it at once. It is opened for both, so that nobody blocks.
const LAUNCH: &str = r#"mkfifo $D/f
setsid sh -c 'setsid sh "$0/s" <"$0/i" >"$0/o" 2>"$0/e";echo $? >"$0/t";mv "$0/t" "$0/x";echo 1<>"$0/f";rm -f "$0/s" "$0/i"' $D </dev/null >/dev/null 2>&1 &
p=$!;born $p&&echo $p $b >$D/n&&mv $D/n $D/r
"#;

/// Waits for the end with one timer, which is ended with what it waits by.
const WAIT: &str = r#"if [ ! -d $D ];then say absent;exit 0;fi
[ -e $D/x ]||[ ! -p $D/f ]||{
exec 5<>$D/f
(trap 'kill $s' TERM;sleep @HOLD@&s=$!;wait $s;echo >&5) </dev/null >/dev/null 2>&1&
k=$!
[ -e $D/x ]||read -r p <&5
kill $k 2>/dev/null
exec 5>&-
}
n=0
while [ ! -e $D/x ];do
if alive;then say runs;exit 0;fi
n=$((n+1));[ $n -lt @TRIES@ ]||{ say lost;exit 0;}
sleep 0.3||sleep 1
done
read -r c <$D/x
o=$(wc -c <$D/o);e=$(wc -c <$D/e);o=$((o));e=$((e));[ $e -le @COMPLAINT@ ]||e=@COMPLAINT@
all(){ cat $D/o;[ $e = 0 ]||head -c $e $D/e; }
if [ $((o+e)) -le @INLINE@ ];then say done $c $o $e;[ $((o+e)) = 0 ]||all|base64 -w0;exit 0;fi
"#;

const PUT: &str = r#"all >$D/a;h=$(sha256sum <$D/a);h=${h%% *}
if fetch -T $D/a;then say put $c $o $e $h;else say noput $?;tail -c 300 $D/w;fi;rm -f $D/a
"#;

const BIG: &str = "say big $c $o $e\n";

impl Envelope<'_> {
    /// The script.
    pub(crate) fn script(&self) -> String {
        let mut text = format!("I={}\n{}", self.id, HEAD.replace("@HOME@", HOME));
        if self.life > 0 {
            text.push_str(&RENEW.replace("@LIFE@", &self.life.to_string()));
        }
        if !self.spent.is_empty() {
            let _ = writeln!(text, "(cd $B&&rm -rf {}) </dev/null >/dev/null 2>&1 &", self.spent.join(" "));
        }
        let moves = self.put.is_some() || matches!(self.payload, Payload::Address { .. });
        text.push_str(if moves { TRANSFER } else { "" });
        self.claim(&mut text);
        let wait = WAIT.replace("@HOLD@", &format!("{}.{:03}", self.hold_ms / 1000, self.hold_ms % 1000));
        let wait = wait.replace("@INLINE@", &INLINE.to_string()).replace("@TRIES@", &TRIES.to_string());
        text.push_str(&wait.replace("@COMPLAINT@", &COMPLAINT.to_string()));
        match self.put {
            Some(url) => {
                let _ = write!(text, "U=$(echo {}|base64 -d)\n{PUT}", base64(url.as_bytes()));
            }
            None => text.push_str(BIG),
        }
        text
    }

    /// What is done by whoever comes first.
    fn claim(&self, text: &mut String) {
        let payload = match &self.payload {
            Payload::None => return,
            Payload::Inline { script, stdin } => {
                let stdin = match stdin {
                    [] => ">$D/i".to_owned(),
                    some => format!("echo {}|base64 -d >$D/i", base64(some)),
                };
                format!("echo {}|base64 -d >$D/s;{stdin}\n", base64(script.as_bytes()))
            }
            Payload::Address { url, sha256, script } => {
                let url = base64(url.as_bytes());
                let fetch = format!("U=$(echo {url}|base64 -d);fetch -o $D/p");
                let check = format!("[ \"$(sha256sum <$D/p)\" = '{sha256}  -' ]");
                let split = format!("head -c {script} $D/p >$D/s;tail -c +{} $D/p >$D/i;rm -f $D/p", script + 1);
                format!("{fetch}&&{check}||{{ say nopayload $?;tail -c 300 $D/w;rm -rf $D;exit 0; }}\n{split}\n")
            }
        };
        let _ = write!(text, "if mkdir $D 2>/dev/null;then\n{HOLD}{payload}{LAUNCH}fi\n");
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// It ended.
    Done { status: i32, stdout: Vec<u8>, stderr: Vec<u8> },
    /// It ended, and its output, so many bytes, was put where it should.
    Put { status: i32, stdout: usize, stderr: usize, sha256: String },
    /// It ended, and its output is too long to come back inline.
    Big,
    /// Its output could not be put.
    NotPut(String),
    /// It runs.
    Runs,
    /// Nothing is known: it must be asked again.
    Nothing,
    /// What ran it is gone, and nobody knows how far it came.
    Gone,
    /// It never came here.
    Absent,
    /// Script and input did not get here, so that it did not run.
    NoPayload(String),
}

impl Told {
    /// Reads an answer. The machine may say anything.
    ///
    /// # Errors
    /// `Protocol`.
    pub(crate) fn read(id: &str, answer: &str) -> Result<Self> {
        Self::take_apart(id, answer).ok_or_else(|| {
            let start: String = answer.chars().take(200).collect();
            let message = format!("the machine's answer makes no sense: {:?}", crate::call::shown(&start));
            Error::new(ErrorKind::Protocol, "run script", message).with_backend(BACKEND)
        })
    }

    fn take_apart(id: &str, answer: &str) -> Option<Self> {
        let (line, body) = answer.split_once('\n')?;
        let rest = line.strip_prefix("tierbox-ssm 1 ")?.strip_prefix(id)?.strip_prefix(' ')?;
        let words: Vec<&str> = rest.split(' ').collect();
        let number = |at: usize| words.get(at)?.parse::<usize>().ok();
        let status = || number(1).filter(|status| *status <= 255).map(|status| status as i32);
        match *words.first()? {
            "runs" => Some(Self::Runs),
            "lost" => Some(Self::Gone),
            "absent" => Some(Self::Absent),
            "big" => Some(Self::Big),
            "nopayload" => Some(Self::NoPayload(crate::call::shown(body))),
            "noput" => Some(Self::NotPut(crate::call::shown(body))),
            "put" => {
                let sha256 = words.get(4).filter(|hash| hash.len() == 64)?;
                Some(Self::Put { status: status()?, stdout: number(2)?, stderr: number(3)?, sha256: (*sha256).to_owned() })
            }
            "done" => {
                let bytes = unbase64(body.trim_end())?;
                let (stdout, stderr) = (number(2)?, number(3)?);
                if bytes.len() != stdout.checked_add(stderr)? {
                    return None;
                }
                let (stdout, stderr) = bytes.split_at(stdout);
                Some(Self::Done { status: status()?, stdout: stdout.to_vec(), stderr: stderr.to_vec() })
            }
            _ => None,
        }
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// How many characters Base64 makes of so many bytes.
pub(crate) fn encoded(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// Bytes as Base64.
pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(encoded(bytes.len()));
    for chunk in bytes.chunks(3) {
        let all = (u32::from(chunk[0]) << 16)
            | (u32::from(chunk.get(1).copied().unwrap_or(0)) << 8)
            | u32::from(chunk.get(2).copied().unwrap_or(0));
        for at in 0..4 {
            let digit = DIGITS[(all >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// Base64 as bytes; `None` for anything else.
fn unbase64(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(4) {
        return None;
    }
    let ends = bytes.iter().rev().take_while(|byte| **byte == b'=').count();
    if ends > 2 {
        return None;
    }
    let mut all = Vec::with_capacity(bytes.len() / 4 * 3);
    for chunk in bytes.chunks(4) {
        let mut word = 0;
        for byte in chunk {
            let digit = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                b'=' => 0,
                _ => return None,
            };
            word = (word << 6) | u32::from(digit);
        }
        all.extend_from_slice(&word.to_be_bytes()[1..]);
    }
    let whole = bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len());
    if bytes.len() - whole != ends {
        return None;
    }
    all.truncate(all.len() - ends);
    Some(all)
}

/// Text that is in Base64, such as what a console printed; line ends within are no part of it.
pub(crate) fn unbase64_text(text: &str) -> Option<String> {
    let joined: String = text.split_whitespace().collect();
    unbase64(&joined).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn base64_goes_there_and_back() {
        for length in 0..70usize {
            let bytes: Vec<u8> = (0..length).map(|at| (at * 37 + length) as u8).collect();
            let text = base64(&bytes);
            assert_eq!(text.len(), encoded(length));
            assert_eq!(unbase64(&text), Some(bytes));
        }
        assert_eq!(base64(b"any carnal pleas"), "YW55IGNhcm5hbCBwbGVhcw==");
        for bad in ["a", "ab=c", "====", "a b=", "\u{e9}abc"] {
            assert_eq!(unbase64(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_sent_holds_nothing_that_ssm_replaces() {
        let payload = Payload::Inline { script: "echo {{x}} {{ global:DATE }}", stdin: b"{{y}}" };
        let envelope =
            Envelope { id: "ab", payload, hold_ms: 5, put: Some("https://x/?a={{b}}"), spent: &["cd".into()], life: 9 };
        let script = envelope.script();
        let left = script.replace("$@", "").contains('@');
        assert!(!script.contains("{{") && !left && script.is_ascii(), "{script}");
    }

    #[test]
    fn answers_are_taken_apart_and_nonsense_is_refused() {
        let done = Told::read("ab", "tierbox-ssm 1 ab done 7 3 2\nb3V0ZXI=").unwrap();
        assert_eq!(done, Told::Done { status: 7, stdout: b"out".to_vec(), stderr: b"er".to_vec() });
        assert_eq!(Told::read("ab", "tierbox-ssm 1 ab runs\n").unwrap(), Told::Runs);
        for nonsense in [
            "",
            "hello\n",
            "tierbox-ssm 1 cd runs\n",
            "tierbox-ssm 1 ab done 7 3 3\nb3V0ZXI=",
            "tierbox-ssm 1 ab done 256 3 2\nb3V0ZXI=",
            "tierbox-ssm 1 ab done 0 18446744073709551615 2\nb3V0ZXI=",
            "tierbox-ssm 1 ab put 0 1 1 short\n",
            "tierbox-ssm 1 ab flies\n",
        ] {
            assert_eq!(Told::read("ab", nonsense).unwrap_err().kind(), ErrorKind::Protocol, "{nonsense}");
        }
    }
}
