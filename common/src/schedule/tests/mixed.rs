//! A dataset with everything in it: folders within folders, fractions, multipliers of single images, many batch ids, a few
//! images repeated often. Its schedules must be the same on every machine and in every later version.

use super::*;

/// About 60,000 images. `batch_ids` is how many ids the images of one folder are divided among.
fn mixed(batch_ids: usize) -> Dataset {
    let all = vec![(512, 512), (450, 570), (900, 400), (400, 900), (512, 512)];
    let folder = |images, multiply: &str, sizes: &[(u32, u32)]| MadeUp {
        images,
        multiply: multiply.to_owned(),
        sizes: sizes.to_vec(),
    };
    let mut dataset = dataset(BTreeMap::from([
        ("a".to_owned(), folder(30_000, "1.3", &all)),
        ("a/0001".to_owned(), folder(3_000, "2.5", &all[1..3])),
        ("b".to_owned(), folder(500, "12.25", &all)),
        ("c".to_owned(), folder(20_000, "0.05", &all)),
        ("d".to_owned(), folder(7, "100", &[(2000, 500)])),
        ("e".to_owned(), folder(9_000, "0.7", &all)),
        ("f".to_owned(), folder(2_000, "2", &all[..2])),
    ]));
    for (index, sample) in dataset.samples.iter_mut().enumerate() {
        match dataset.folders[sample.folder as usize].path.as_str() {
            "a" if index % 7 == 0 => sample.multiply = Decimal::parse("3.75").unwrap(),
            "a" if index % 101 == 0 => sample.multiply = Decimal::parse("0.000001").unwrap(),
            "a/0001" => sample.batch_id = Some("red".to_owned()),
            "b" if index % 3 == 0 => sample.batch_id = Some("blue".to_owned()),
            "f" => sample.batch_id = Some(format!("id {}", index % batch_ids)),
            _ => {}
        }
    }
    dataset
}

#[test]
fn hashes_of_a_mixed_case() {
    let dataset = mixed(5);
    let hash = |epoch| EpochSchedule::compute(&dataset, &options(4, 4), epoch).hash();
    assert_eq!(
        [0, 1, 7, 1000].map(hash),
        [
            "7a53f811816d3ffa50b3bd00aeb1d17f90345f8aec97fee9c6875a258d071034",
            "4b5e50c028d1cb1453acdebe8b247df842270b05ed29627138e1ded086ff720d",
            "bc0101d18f9a3e88e409410cf6a2ecbb92b1b425c6cb651163173d0a31004075",
            "183da0c547f7604b27244062e9c98ace214c431d587ac216a7088e3bfe19f2b5",
        ]
    );
}

#[test]
fn hashes_of_many_batch_ids_and_other_options() {
    let dataset = mixed(400);
    let hash = |options| EpochSchedule::compute(&dataset, &options, 3).hash();
    let independent = ScheduleOptions { remainder: Remainder::Independent, ..options(3, 5) };
    let hashes = [options(1, 1), options(1, 16), options(4, 8), options(64, 1), independent].map(hash);
    assert_eq!(
        hashes,
        [
            "1f3488136a0fc80a70ca5064128412af841f65ee515abc0d79e35006dbfc1950",
            "767fb8f9f4b2fdf871539b2522c86a487bc6071fbb30b4fb1be3eb8f713821e2",
            "7e162d258b0c9f78979872ec991e02aeeea80d9709745ddb2f7374e42cecbb2d",
            "5832476fb3f317f2105a43e9ff03c985b7aed89b8e4c6271b280a2056af563ca",
            "56ceb18edbfb0d4d1dfc8d72a78f88a9f07d57940381113de22bd827303cfd18",
        ]
    );
}
