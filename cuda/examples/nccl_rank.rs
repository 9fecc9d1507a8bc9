//! One rank of a group on a GPU: forms it, adds up by NCCL and by exchange, checks both, times the first, and aborts.
//!
//! `nccl_rank RANK WORLD_SIZE GPU ID_FILE [MIB]`: rank 0 writes the id, the others wait for it. Two ranks share a GPU with
//! NCCL 2.30 and `NCCL_MULTI_RANK_GPU_ENABLE=1`. Prints one JSON object. `tests/gpu/run` starts it. **Not seen on a GPU yet.**

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use ballast_cuda::nccl::{Group, GroupConfig, Limits, Nccl, NcclError, Raw, Transfer, UNIQUE_ID_BYTES, UniqueId};

fn main() {
    if let Err(error) = run() {
        let hint = error.downcast_ref::<NcclError>().and_then(NcclError::hint);
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        println!("{}", serde_json::json!({ "error": text, "hint": hint }));
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |i: usize| -> Result<u32, Box<dyn Error>> {
        Ok(arguments.get(i).ok_or("usage: nccl_rank RANK WORLD_SIZE GPU ID_FILE [MIB]")?.parse()?)
    };
    let (rank, world_size, gpu) = (number(0)?, number(1)?, number(2)?);
    let id_file = Path::new(arguments.get(3).ok_or("no ID_FILE")?);
    let elements = number(4).unwrap_or(256) as usize * (1 << 18);

    let raw = Nccl::new(gpu)?;
    let id = share_id(&raw, rank, id_file)?;
    let started = Instant::now();
    let limits = Limits { form: Duration::from_secs(60), operation: Duration::from_secs(60), ..Limits::default() };
    let mut group = Group::form(raw.clone(), GroupConfig { generation: 1, rank, world_size, limits }, &id)?;
    group.wait_ready(&|| false)?;
    let form = started.elapsed();

    let buffer = raw.allocate(elements)?;
    let mut times = Vec::new();
    for _ in 0..5 {
        raw.upload(&vec![(rank + 1) as f32; elements], &buffer, 0)?;
        let started = Instant::now();
        group.all_reduce(&buffer, 0..elements, 16 << 20, &|| false)?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let expected = (world_size * (world_size + 1) / 2) as f32;
    let sum_is_right = values(&raw, &buffer)?.iter().all(|value| *value == expected);

    // Everybody sends its rank to its right neighbour and adds what came from the left to its own.
    let (right, left) = ((rank + 1) % world_size, (rank + world_size - 1) % world_size);
    let (own, other) = (raw.allocate(1000)?, raw.allocate(1000)?);
    raw.upload(&[rank as f32; 1000], &own, 0)?;
    let transfers = [
        Transfer::Send { from: &own, range: 0..1000, peer: right },
        Transfer::Receive { to: &other, range: 0..1000, peer: left },
    ];
    group.exchange(&transfers, limits.operation, &|| false)?;
    raw.add((&own, 0), (&other, 0), 1000)?;
    let exchange_is_right = values(&raw, &own)?.iter().all(|value| *value == (rank + left) as f32);
    group.abort()?;

    times.sort_by(f64::total_cmp);
    println!(
        "{}",
        serde_json::json!({
            "rank": rank,
            "form_ms": form.as_secs_f64() * 1e3,
            "all_reduce_mib": elements >> 18,
            "all_reduce_ms": times[2],
            "sum_is_right": sum_is_right,
            "exchange_is_right": exchange_is_right,
        })
    );
    if sum_is_right && exchange_is_right { Ok(()) } else { Err("a sum is wrong".into()) }
}

fn values(raw: &Nccl, buffer: &<Nccl as Raw>::Buffer) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut values = vec![0.0; raw.len(buffer)];
    raw.download(buffer, 0, &mut values)?;
    Ok(values)
}

fn share_id(raw: &Nccl, rank: u32, file: &Path) -> Result<UniqueId, Box<dyn Error>> {
    if rank == 0 {
        let id = raw.make_id()?;
        let new = file.with_extension("new");
        fs::write(&new, id.0)?;
        fs::rename(new, file)?;
        return Ok(id);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while !file.exists() {
        if Instant::now() > deadline {
            return Err("rank 0 wrote no id within 30 s".into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    let bytes: [u8; UNIQUE_ID_BYTES] = fs::read(file)?.try_into().map_err(|_| "the id has not 128 bytes")?;
    Ok(UniqueId(bytes))
}
