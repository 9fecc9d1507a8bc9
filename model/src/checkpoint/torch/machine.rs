//! Pickle's stack machine: one instruction after the other, each of which adds at most one value.

use super::cursor::Cursor;
use super::names::{Global, resolve};
use super::pickle::{Id, PickleError, PickledTensor, Storage, Value};
use std::collections::HashMap;

/// Runs a pickle and returns its values, the number of the last one, which is what was pickled, and its length in bytes.
pub(crate) fn run(bytes: &[u8], max_values: usize) -> Result<(Vec<Value>, Id, usize), PickleError> {
    let mut machine = Machine {
        input: Cursor::new(bytes),
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        max_values,
        steps: 0,
    };
    let root = machine.run()?;
    Ok((machine.values, root, machine.input.position()))
}

/// Storages are numbered; a long key that many tensors repeat would only cost memory.
const MAX_STORAGE_KEY: usize = 64;

struct Machine<'a> {
    input: Cursor<'a>,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    max_values: usize,
    /// Instructions so far that may have made a value or a place for one.
    steps: usize,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Id, PickleError> {
        loop {
            let [op] = self.input.array()?;
            if op == b'.' {
                return self.pop(); // STOP
            }
            self.step(op)?;
            if !matches!(op, 0x80 | 0x95) {
                self.steps += 1;
            }
            if self.values.len() > self.max_values
                || self.steps > 4 * self.max_values
                || self.memo.len() >= self.max_values
            {
                return Err(PickleError::TooLarge { limit: self.max_values });
            }
        }
    }

    /// Instructions without and with scalars.
    fn step(&mut self, op: u8) -> Result<(), PickleError> {
        match op {
            0x80 => self.input.skip(1)?,                                  // PROTO
            0x95 => self.input.skip(8)?,                                  // FRAME
            b'N' => self.push(Value::Other),                              // NONE
            0x88 | 0x89 => self.push(Value::Bool(op == 0x88)),            // NEWTRUE, NEWFALSE
            b'K' => self.integer::<1>(|b| u8::from_le_bytes(b).into())?,  // BININT1
            b'M' => self.integer::<2>(|b| u16::from_le_bytes(b).into())?, // BININT2
            b'J' => self.integer::<4>(|b| i32::from_le_bytes(b).into())?, // BININT
            b'I' | b'L' => self.written_integer()?,                       // INT, LONG
            0x8a => self.long(1)?,                                        // LONG1
            0x8b => self.long(4)?,                                        // LONG4
            b'G' => self.other(8)?,                                       // BINFLOAT
            b'F' => {
                self.input.line()?; // FLOAT
                self.push(Value::Other);
            }
            b'X' | b'T' => self.text(4)?, // BINUNICODE, BINSTRING
            0x8c | b'U' => self.text(1)?, // SHORT_BINUNICODE, SHORT_BINSTRING
            0x8d => self.text(8)?,        // BINUNICODE8
            b'V' | b'S' => {
                let line = self.input.line()?.trim_matches(['\'', '"']).to_owned(); // UNICODE, STRING
                self.push(Value::Text(line.into()));
            }
            b'C' => self.bytes_value(1)?,        // SHORT_BINBYTES
            b'B' => self.bytes_value(4)?,        // BINBYTES
            0x8e | 0x96 => self.bytes_value(8)?, // BINBYTES8, BYTEARRAY8
            _ => self.step_container(op)?,
        }
        Ok(())
    }

    /// Instructions that build and fill containers.
    fn step_container(&mut self, op: u8) -> Result<(), PickleError> {
        match op {
            b'(' => self.marks.push(self.stack.len()),          // MARK
            b')' => self.push(Value::Tuple(Vec::new())),        // EMPTY_TUPLE
            b']' => self.push(Value::List(Vec::new())),         // EMPTY_LIST
            b'}' => self.push(Value::Dict(Vec::new())),         // EMPTY_DICT
            0x8f => self.push(Value::Other),                    // EMPTY_SET
            0x85..=0x87 => self.tuple(usize::from(op - 0x84))?, // TUPLE1, TUPLE2, TUPLE3
            b't' => {
                let items = self.pop_mark()?; // TUPLE
                self.push(Value::Tuple(items));
            }
            b'l' => {
                let items = self.pop_mark()?; // LIST
                self.push(Value::List(items));
            }
            b'd' => {
                let items = self.pop_mark()?; // DICT
                self.push(Value::Dict(pairs(&items)));
            }
            0x91 => {
                self.pop_mark()?; // FROZENSET
                self.push(Value::Other);
            }
            b'a' => {
                let item = self.pop()?; // APPEND
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?; // APPENDS, ADDITEMS
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?); // SETITEM
                self.set(vec![(key, value)])?;
            }
            b'u' => {
                let items = self.pop_mark()?; // SETITEMS
                self.set(pairs(&items))?;
            }
            b'b' => {
                self.pop()?; // BUILD: attributes of an object, which nothing here needs
                self.top()?;
            }
            _ => self.step_stack(op)?,
        }
        Ok(())
    }

    /// Instructions that move values, and those that name what is outside of the pickle.
    fn step_stack(&mut self, op: u8) -> Result<(), PickleError> {
        match op {
            b'0' => drop(self.pop()?),      // POP
            b'1' => drop(self.pop_mark()?), // POP_MARK
            b'2' => {
                let top = self.top()?; // DUP
                self.stack.push(top);
            }
            b'q' => self.remember_at(1)?, // BINPUT
            b'r' => self.remember_at(4)?, // LONG_BINPUT
            b'p' => {
                let key = self.input.line_number()?; // PUT
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u64)?, // MEMOIZE
            b'h' => self.recall_at(1)?,                     // BINGET
            b'j' => self.recall_at(4)?,                     // LONG_BINGET
            b'g' => {
                let key = self.input.line_number()?; // GET
                self.recall(key)?;
            }
            b'c' => {
                let (module, name) = (self.input.line()?, self.input.line()?); // GLOBAL
                self.push(Value::Global(resolve(module, name)?));
            }
            0x93 => {
                let (name, module) = (self.pop_text()?, self.pop_text()?); // STACK_GLOBAL
                self.push(Value::Global(resolve(&module, &name)?));
            }
            b'i' => {
                let (module, name) = (self.input.line()?, self.input.line()?); // INST
                let global = resolve(module, name)?;
                let arguments = self.pop_mark()?;
                self.call(&Value::Global(global), &arguments)?;
            }
            b'R' | 0x81 => {
                let arguments = self.pop()?; // REDUCE, NEWOBJ
                let callee = self.pop()?;
                self.call_with(callee, arguments)?;
            }
            0x92 => {
                let (_, arguments) = (self.pop()?, self.pop()?); // NEWOBJ_EX
                let callee = self.pop()?;
                self.call_with(callee, arguments)?;
            }
            b'o' => {
                let items = self.pop_mark()?; // OBJ
                let (callee, arguments) = items.split_first().ok_or_else(|| self.malformed("an object of no class"))?;
                let callee = self.values[*callee as usize].clone();
                self.call(&callee, arguments)?;
            }
            b'Q' => {
                let id = self.pop()?; // BINPERSID
                let storage = self.storage(id)?;
                self.push(Value::Storage(storage));
            }
            _ => return Err(self.malformed(&format!("instruction {op:#04x} is not known here"))),
        }
        Ok(())
    }

    fn call_with(&mut self, callee: Id, arguments: Id) -> Result<(), PickleError> {
        let callee = match &self.values[callee as usize] {
            Value::Global(global) => Value::Global(*global),
            _ => Value::Other,
        };
        let Value::Tuple(arguments) = &self.values[arguments as usize] else {
            return Err(self.malformed("arguments that are no tuple"));
        };
        let arguments = arguments.clone();
        self.steps += arguments.len();
        self.call(&callee, &arguments)
    }

    /// "Calls" a name: makes the value that the arguments describe.
    fn call(&mut self, callee: &Value, arguments: &[Id]) -> Result<(), PickleError> {
        let value = match callee {
            Value::Global(Global::Tensor) => Value::Tensor(self.tensor(arguments)?.into()),
            Value::Global(Global::Parameter) => match arguments.first().map(|id| &self.values[*id as usize]) {
                Some(Value::Tensor(tensor)) => Value::Tensor(tensor.clone()),
                _ => return Err(self.malformed("a parameter that is no tensor")),
            },
            Value::Global(Global::Dict) => {
                let items = match arguments.first().map(|id| self.get(*id)) {
                    Some(Value::List(items) | Value::Tuple(items)) => items.as_slice(),
                    _ => &[],
                };
                let (looked_at, pairs) = (items.len(), self.listed_pairs(items));
                // Counted, because a list of a million pairs can be used a million times.
                self.steps += looked_at;
                Value::Dict(pairs)
            }
            Value::Global(Global::Opaque) => Value::Other,
            _ => return Err(self.malformed("a call of something that is no function")),
        };
        self.push(value);
        Ok(())
    }

    /// `(storage, offset, shape, strides, …)`
    fn tensor(&self, arguments: &[Id]) -> Result<PickledTensor, PickleError> {
        let [storage, offset, shape, strides, ..] = arguments else {
            return Err(self.malformed("a tensor needs storage, offset, shape and strides"));
        };
        let (Value::Storage(storage), Value::Int(offset)) = (self.get(*storage), self.get(*offset)) else {
            return Err(self.malformed("a tensor without storage or offset"));
        };
        let (shape, strides) = (self.integers(*shape)?, self.integers(*strides)?);
        Ok(PickledTensor { storage: storage.clone(), offset: *offset, shape, strides })
    }

    /// Lengths or strides of a tensor's dimensions.
    fn integers(&self, id: Id) -> Result<Vec<i64>, PickleError> {
        const MAX_DIMENSIONS: usize = 16;
        let items = match self.get(id) {
            Value::Tuple(items) | Value::List(items) if items.len() <= MAX_DIMENSIONS => items,
            _ => return Err(self.malformed("a shape that is no list of a few numbers")),
        };
        let number = |id: &Id| match self.get(*id) {
            Value::Int(number) => Ok(*number),
            _ => Err(self.malformed("a shape with something else than numbers in it")),
        };
        items.iter().map(number).collect()
    }

    /// `("storage", torch.FloatStorage, "17", "cpu", 320)`
    fn storage(&self, id: Id) -> Result<Storage, PickleError> {
        if let Value::Tuple(items) = self.get(id)
            && let [tag, kind, key, ..] = items.as_slice()
            && let (Value::Text(tag), Value::Global(Global::Storage(kind)), Value::Text(key)) =
                (self.get(*tag), self.get(*kind), self.get(*key))
            && **tag == *"storage"
            && key.len() <= MAX_STORAGE_KEY
        {
            // PyTorch before 0.4 had storages that were views of others.
            if matches!(items.get(5).map(|id| self.get(*id)), Some(Value::Tuple(_))) {
                return Err(self.malformed("a storage that is a view of another is not read: save the file again"));
            }
            return Ok(Storage { kind: *kind, key: key.clone() });
        }
        Err(self.malformed("something outside of the file that is no storage of numbers"))
    }

    /// Those of the items that are pairs, as `OrderedDict` takes them.
    fn listed_pairs(&self, items: &[Id]) -> Vec<(Id, Id)> {
        let pair = |id: &Id| match self.get(*id) {
            Value::List(pair) | Value::Tuple(pair) if pair.len() == 2 => Some((pair[0], pair[1])),
            _ => None,
        };
        items.iter().filter_map(pair).collect()
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), PickleError> {
        let top = self.top()?;
        match &mut self.values[top as usize] {
            Value::List(list) => list.extend(items),
            Value::Other => {} // a set, or an object that is read over
            _ => return Err(self.malformed("items for something that is no list")),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<(Id, Id)>) -> Result<(), PickleError> {
        let top = self.top()?;
        match &mut self.values[top as usize] {
            Value::Dict(pairs) => pairs.extend(items),
            Value::Other => {}
            _ => return Err(self.malformed("entries for something that is no dictionary")),
        }
        Ok(())
    }

    fn tuple(&mut self, length: usize) -> Result<(), PickleError> {
        let start = self.stack.len().checked_sub(length).filter(|start| *start >= self.floor());
        let start = start.ok_or_else(|| self.malformed("the stack is empty"))?;
        let items = self.stack.split_off(start);
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn remember_at(&mut self, width: u64) -> Result<(), PickleError> {
        let key = self.input.number(width)?;
        self.remember(key)
    }

    fn remember(&mut self, key: u64) -> Result<(), PickleError> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall_at(&mut self, width: u64) -> Result<(), PickleError> {
        let key = self.input.number(width)?;
        self.recall(key)
    }

    fn recall(&mut self, key: u64) -> Result<(), PickleError> {
        let id = *self.memo.get(&key).ok_or_else(|| self.malformed("a value that was not remembered"))?;
        self.stack.push(id);
        Ok(())
    }

    fn integer<const N: usize>(&mut self, convert: impl Fn([u8; N]) -> i64) -> Result<(), PickleError> {
        let bytes = self.input.array()?;
        self.push(Value::Int(convert(bytes)));
        Ok(())
    }

    /// A little-endian integer in two's complement; those of more than 64 bits are of no use here.
    fn long(&mut self, width: u64) -> Result<(), PickleError> {
        let length = self.input.number(width)?;
        let bytes = self.input.take(length)?;
        let value = if bytes.len() <= 8 {
            let sign = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xFF } else { 0 };
            let mut whole = [sign; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(whole))
        } else {
            Value::Other
        };
        self.push(value);
        Ok(())
    }

    fn written_integer(&mut self) -> Result<(), PickleError> {
        let text = self.input.line()?.trim_end_matches('L');
        let value = text.parse().map_or(Value::Other, Value::Int);
        self.push(value);
        Ok(())
    }

    fn text(&mut self, width: u64) -> Result<(), PickleError> {
        let length = self.input.number(width)?;
        let text = String::from_utf8_lossy(self.input.take(length)?).into_owned();
        self.push(Value::Text(text.into()));
        Ok(())
    }

    fn bytes_value(&mut self, width: u64) -> Result<(), PickleError> {
        let length = self.input.number(width)?;
        self.input.take(length)?;
        self.push(Value::Other);
        Ok(())
    }

    fn other(&mut self, length: u64) -> Result<(), PickleError> {
        self.input.skip(length)?;
        self.push(Value::Other);
        Ok(())
    }

    fn get(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
    }

    /// The height that the stack may not fall below: the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        let is_there = self.stack.len() > self.floor();
        let top = if is_there { self.stack.pop() } else { None };
        top.ok_or_else(|| self.malformed("the stack is empty"))
    }

    fn top(&self) -> Result<Id, PickleError> {
        self.stack.last().copied().ok_or_else(|| self.malformed("the stack is empty"))
    }

    fn pop_text(&mut self) -> Result<String, PickleError> {
        let id = self.pop()?;
        match self.get(id) {
            Value::Text(text) => Ok(text.to_string()),
            _ => Err(self.malformed("a name that is no text")),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.malformed("an end without a begin"))?;
        Ok(self.stack.split_off(mark))
    }

    fn malformed(&self, problem: &str) -> PickleError {
        self.input.malformed(problem)
    }
}

/// Keys and values that follow each other.
fn pairs(items: &[Id]) -> Vec<(Id, Id)> {
    items.as_chunks::<2>().0.iter().map(|[key, value]| (*key, *value)).collect()
}
