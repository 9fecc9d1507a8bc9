//! A pickle as data: tensors, dictionaries, lists, texts, numbers. Nothing is called, imported or executed.
//!
//! Python's pickle is a program for a small stack machine. Ours knows the instructions that build containers, and a
//! list of names ([`names`](super::names)); it refuses every other name by name. All values lie in one vector and
//! refer to each other by number, so that neither a deep nor a cyclic value can exhaust the stack, and a value
//! that is mentioned a million times exists once.

use super::machine;
use super::names::{Global, StorageType};

/// A pickle that is not read.
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    /// A name that is not on the list.
    #[error("the pickle wants to call `{name}`, which no model needs; nothing in it was executed")]
    Refused {
        /// Module and name.
        name: String,
    },
    /// An instruction that makes no sense where it stands.
    #[error("the pickle is damaged at byte {offset}: {problem}")]
    Malformed {
        /// Place in the pickle.
        offset: usize,
        /// What is wrong.
        problem: String,
    },
    /// More values than any model has.
    #[error("the pickle has more than {limit} values: no model has so many")]
    TooLarge {
        /// How many are read.
        limit: usize,
    },
}

/// Number of a value.
pub(crate) type Id = u32;

/// A value.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Int(i64),
    Bool(bool),
    Text(Box<str>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage),
    Tensor(Box<PickledTensor>),
    /// Anything else: None, floats, bytes, harmless objects.
    Other,
}

/// The numbers behind one or more tensors: an entry of the archive.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    pub(crate) kind: StorageType,
    /// Name of the archive's entry below `data/`.
    pub(crate) key: Box<str>,
}

/// A view of a storage. Counts are in numbers, not bytes; nothing is checked yet.
#[derive(Clone, Debug)]
pub(crate) struct PickledTensor {
    pub(crate) storage: Storage,
    pub(crate) offset: i64,
    pub(crate) shape: Vec<i64>,
    pub(crate) strides: Vec<i64>,
}

/// All values of a pickle.
pub(crate) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

/// A training checkpoint with its optimizer has some 100,000 values.
const MAX_VALUES: usize = 2_000_000;

impl Pickle {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, PickleError> {
        Self::parse_first(bytes).map(|(pickle, _)| pickle)
    }

    /// Reads the pickle that the bytes begin with, and returns its length too.
    pub(crate) fn parse_first(bytes: &[u8]) -> Result<(Self, usize), PickleError> {
        let (values, root, length) = machine::run(bytes, MAX_VALUES)?;
        Ok((Self { values, root }, length))
    }

    pub(crate) fn root(&self) -> &Value {
        self.get(self.root)
    }

    pub(crate) fn get(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    /// All values, of whatever they are a part.
    pub(crate) fn values(&self) -> &[Value] {
        &self.values
    }

    /// Entries of a dictionary whose keys are texts.
    pub(crate) fn entries<'a>(&'a self, value: &'a Value) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let pairs = if let Value::Dict(pairs) = value { pairs.as_slice() } else { &[] };
        pairs.iter().filter_map(|(key, value)| match self.get(*key) {
            Value::Text(key) => Some((&**key, self.get(*value))),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusal(bytes: &[u8]) -> String {
        Pickle::parse(bytes).err().expect("refused").to_string()
    }

    #[test]
    fn a_call_of_anything_but_a_rebuild_is_refused_by_name() {
        // pickle.dumps(a, 2) of an object whose __reduce__ is (os.system, ("echo hi",))
        let system = b"\x80\x02cposix\nsystem\nq\x00X\x07\x00\x00\x00echo hiq\x01\x85q\x02Rq\x03.";
        assert!(refusal(system).contains("`posix.system`"), "{}", refusal(system));
        // Protocol 4 takes module and name from the stack.
        let eval =
            b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x94\x8c\x04eval\x94\x93\x94\x8c\x011\x85R.";
        assert!(refusal(eval).contains("`builtins.eval`"), "{}", refusal(eval));
        // Protocol 0: INST.
        assert!(refusal(b"(S'echo hi'\nios\nsystem\n.").contains("`os.system`"));
        for (module, name) in [
            ("builtins", "exec"),
            ("builtins", "getattr"),
            ("torch", "load"),
            ("torch.storage", "_load_from_bytes"),
            ("pytorch_lightning.x", "os.system"),
            ("subprocess", "Popen"),
            ("collections", "OrderedDict.fromkeys"),
        ] {
            let pickle = format!("\u{0}c{module}\n{name}\n)R.");
            let said = refusal(&pickle.as_bytes()[1..]);
            assert!(said.contains(&format!("`{module}.{name}`")), "{said}");
        }
    }

    #[test]
    fn a_value_that_is_called_is_refused() {
        for pickle in [&b"})R."[..], b"X\x02\x00\x00\x00os)R.", b"}\x81.", b"ctorch\nFloatStorage\n)R."] {
            assert!(refusal(pickle).contains("damaged"), "{}", refusal(pickle));
        }
    }

    #[test]
    fn bombs_cost_no_more_than_their_own_length() {
        // A tuple in a tuple in a tuple …: dropping it must not recurse.
        let mut deep = vec![b')'];
        deep.extend(vec![0x85; 1_500_000]);
        deep.push(b'.');
        Pickle::parse(&deep).unwrap();
        // A list of two of the list before, a hundred times: 2^100 if it were written out.
        let mut doubling = b"]".to_vec();
        for _ in 0..100 {
            doubling.extend(b"q\x00]h\x00ah\x00a");
        }
        doubling.push(b'.');
        Pickle::parse(&doubling).unwrap();
        // A list that contains itself.
        Pickle::parse(b"]q\x00h\x00a.").unwrap();
        // A dictionary of a list of a hundred thousand items, a hundred thousand times.
        let mut calls = b"ccollections\nOrderedDict\nq\x00(".to_vec();
        calls.extend(vec![b')'; 100_000]);
        calls.extend(b"l\x85q\x01");
        calls.extend(b"h\x00h\x01R0".repeat(100_000));
        assert!(refusal(&calls).contains("values"), "{}", refusal(&calls));
        // A memo of two million entries under scattered numbers.
        let mut memo = b"N".to_vec();
        for i in 0..2_000_001u32 {
            memo.push(b'r');
            memo.extend((i.wrapping_mul(2_654_435_761)).to_le_bytes());
        }
        assert!(refusal(&memo).contains("more than 2000000 values"), "{}", refusal(&memo));
        // A text and an integer of four gigabytes, in six bytes.
        assert!(refusal(b"X\xff\xff\xff\xff.").contains("damaged"));
        assert!(refusal(b"\x8b\xff\xff\xff\x7f.").contains("damaged"));
    }

    #[test]
    fn what_python_writes_is_read() {
        // pickle.dumps({"a": 5, "b": -3, "c": 2**40, "d": (1, 2, 3, 4), "e": [1], "f": None, "g": 1.5, "h": b"x"}, 2)
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x05X\x01\x00\x00\x00bq\x02J\xfd\xff\xff\xffX\x01\x00\x00\x00cq\x03\x8a\x06\x00\x00\x00\x00\x00\x01X\x01\x00\x00\x00dq\x04(K\x01K\x02K\x03K\x04tq\x05X\x01\x00\x00\x00eq\x06]q\x07K\x01aX\x01\x00\x00\x00fq\x08NX\x01\x00\x00\x00gq\tG?\xf8\x00\x00\x00\x00\x00\x00u.";
        let pickle = Pickle::parse(bytes).unwrap();
        let entries: Vec<_> = pickle.entries(pickle.root()).collect();
        let int = |at: usize| if let Value::Int(value) = entries[at].1 { *value } else { panic!("{:?}", entries[at]) };
        assert_eq!((entries.len(), int(0), int(1), int(2)), (7, 5, -3, 1 << 40));
        assert!(matches!(entries[3].1, Value::Tuple(items) if items.len() == 4));
        assert!(matches!(entries[4].1, Value::List(items) if items.len() == 1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Pickle::parse(&bytes);
        }

        /// Instructions are more likely than other bytes, so that more of the machine is met.
        #[test]
        fn any_instructions_are_read_or_refused(
            ops in proptest::collection::vec(proptest::sample::select(b"(.012]}a)lt\x85\x86\x87eusdbR\x81\x8fq\x00h\x00K\x01NQX\x01\x00\x00\x00a".to_vec()), 0..100)
        ) {
            let _ = Pickle::parse(&ops);
        }
    }
}
