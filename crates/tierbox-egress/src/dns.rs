//! Answers to queries, from the rules alone. Nothing is ever forwarded.

use std::net::Ipv4Addr;

use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE};
use tierbox_core::host_name;

use crate::rules::Rules;

/// The longest query. Those of programs have less than 300 bytes.
pub(crate) const LONGEST: usize = 1024;

/// How long an answer may be kept, in seconds.
const KEPT: u32 = 30;

/// An answer, and what was asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// What to send.
    pub bytes: Vec<u8>,
    /// The name that was asked for, as far as it is one.
    pub name: String,
    /// The rule that knows it.
    pub rule: Option<String>,
}

/// Answers a query; `None` if it is none.
pub(crate) fn answer(query: &[u8], rules: &Rules, gateway: Ipv4Addr) -> Option<Answer> {
    if query.len() > LONGEST {
        return None;
    }
    let asked = Packet::parse(query).ok()?;
    if asked.has_flags(PacketFlag::RESPONSE) || asked.opcode() != OPCODE::StandardQuery || asked.questions.len() != 1 {
        return None;
    }
    let question = asked.questions.first()?;
    let shown = question.qname.to_string();
    let rule = host_name(&shown).and_then(|name| rules.knows(&name)).map(ToString::to_string);
    let mut reply = Packet::new_reply(asked.id());
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if asked.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    let in_class = matches!(question.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY);
    if rule.is_none() || !in_class {
        *reply.rcode_mut() = RCODE::NameError;
    } else if question.qtype == QTYPE::TYPE(TYPE::A) {
        let record = RData::A(A { address: gateway.into() });
        reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, KEPT, record));
    }
    reply.questions.push(question.clone());
    let bytes = reply.build_bytes_vec_compressed().ok()?;
    let name = shown.chars().take(255).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect();
    Some(Answer { bytes, name, rule })
}

#[cfg(test)]
mod unit {
    use proptest::prelude::*;
    use simple_dns::{Name, Question};

    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

    fn query(name: &str, kind: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        packet.questions.push(Question::new(Name::new_unchecked(name), kind.into(), CLASS::IN.into(), false));
        packet.build_bytes_vec().unwrap()
    }

    fn rules() -> Rules {
        Rules::parse(&["index.test", "*.files.test"]).unwrap()
    }

    fn ask(name: &str, kind: TYPE) -> (RCODE, usize) {
        let answer = answer(&query(name, kind), &rules(), GATEWAY).unwrap();
        let packet = Packet::parse(&answer.bytes).unwrap();
        assert_eq!(packet.id(), 7);
        for record in &packet.answers {
            assert_eq!(record.rdata, RData::A(A { address: GATEWAY.into() }));
        }
        (packet.rcode(), packet.answers.len())
    }

    #[test]
    fn only_allowed_names_have_an_address_and_it_is_the_gateways() {
        assert_eq!(ask("index.test", TYPE::A), (RCODE::NoError, 1));
        assert_eq!(ask("InDeX.TeSt", TYPE::A), (RCODE::NoError, 1));
        assert_eq!(ask("a.files.test", TYPE::A), (RCODE::NoError, 1));
        for other in ["test", "files.test", "index.test.evil.test", "secret.evil.test", "xindex.test"] {
            assert_eq!(ask(other, TYPE::A), (RCODE::NameError, 0), "{other}");
        }
    }

    #[test]
    fn other_records_are_empty() {
        for kind in [TYPE::AAAA, TYPE::HTTPS, TYPE::SVCB, TYPE::TXT, TYPE::MX, TYPE::CNAME] {
            assert_eq!(ask("index.test", kind), (RCODE::NoError, 0), "{kind:?}");
            assert_eq!(ask("evil.test", kind), (RCODE::NameError, 0), "{kind:?}");
        }
    }

    #[test]
    fn what_is_no_query_gets_no_answer() {
        let mut reply = query("index.test", TYPE::A);
        reply[2] |= 0x80;
        assert_eq!(answer(&reply, &rules(), GATEWAY), None);
        assert_eq!(answer(&[], &rules(), GATEWAY), None);
        assert_eq!(answer(&[0; 12], &rules(), GATEWAY), None);
        // A name that points to itself.
        let mut looped = query("index.test", TYPE::A);
        looped.truncate(12);
        looped.extend([0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(answer(&looped, &rules(), GATEWAY), None);
    }

    proptest! {
        #[test]
        fn any_datagram_gets_an_answer_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(answer) = answer(&bytes, &rules(), GATEWAY) {
                prop_assert!(answer.rule.is_some() || Packet::parse(&answer.bytes).is_ok_and(|packet| packet.answers.is_empty()));
            }
        }

        #[test]
        fn a_changed_query_gets_an_answer_or_none(at in 0usize..64, with in any::<u8>()) {
            let mut bytes = query("a.files.test", TYPE::A);
            let length = bytes.len();
            bytes[at % length] = with;
            let _ = answer(&bytes, &rules(), GATEWAY);
        }
    }
}
