//! The report's plots.

use ballast_coordinator::report::{FolderReport, RunReport};

use crate::loss_curve::{adjusted, by_folder, chart};
use crate::plot::{Bar, LineChart, Titles, bars, columns};

/// Most folders of the plot of exposures.
const FOLDERS_MAX: usize = 40;

/// Draws all plots that there is enough for, each with the name of its file.
pub(super) fn plots(report: &RunReport) -> Vec<(&'static str, String)> {
    let plots = [
        ("exposures_by_folder.svg", exposures(report)),
        ("exposures_per_image.svg", per_image(report)),
        ("loss_by_folder.svg", losses_by_folder(report)),
        ("loss_by_timestep.svg", losses_by_timestep(report)),
    ];
    plots.into_iter().filter_map(|(name, plot)| Some((name, plot?))).collect()
}

fn exposures(report: &RunReport) -> Option<String> {
    let mut folders: Vec<&FolderReport> = report.folders.iter().collect();
    let is_cut = folders.len() > FOLDERS_MAX;
    if is_cut {
        folders.sort_by_key(|folder| std::cmp::Reverse(folder.exposures.delivered));
        folders.truncate(FOLDERS_MAX);
    }
    let bar = |folder: &&FolderReport| {
        let delivered = folder.exposures.delivered;
        let weight = folder.effective_share * 100.0;
        Bar {
            name: folder.path.clone(),
            value: delivered as f64,
            wanted: folder.exposures.intended.map(|intended| intended as f64),
            note: format!(
                "{delivered} · {:.1} per image · {weight:.1} % of the weight",
                folder.exposures_per_image.mean
            ),
        }
    };
    let rows: Vec<_> = folders.iter().map(bar).collect();
    let titles = Titles {
        title: "Delivered and intended".to_owned(),
        subtitle: format!("uses of each folder's images in {} committed steps", report.run.committed_steps),
        across: "uses".to_owned(),
        up: String::new(),
    };
    let more = is_cut.then(|| format!("… and {} folders with fewer uses", report.folders.len() - FOLDERS_MAX));
    let legend = ["delivered", "intended", "not delivered"];
    (report.run.committed_steps > 0).then(|| bars(&titles, legend, &rows, more.as_deref()))
}

fn per_image(report: &RunReport) -> Option<String> {
    let titles = Titles {
        title: "How often images came up".to_owned(),
        subtitle: format!("{} images, {} of them at least once", report.total.images, report.total.images_used),
        across: "uses of an image".to_owned(),
        up: "images".to_owned(),
    };
    let counts: Vec<_> = report.exposures_per_image.iter().map(|count| (count.exposures, count.images)).collect();
    (report.run.committed_steps > 0).then(|| columns(&titles, &counts))
}

fn losses_by_folder(report: &RunReport) -> Option<String> {
    let titles = Titles {
        title: "Which folder is learned, and how fast".to_owned(),
        subtitle:
            "loss over the whole run's mean at the same timesteps: 1 is the run as a whole, lower is learned better; \
                   bands: where the mean may well lie"
                .to_owned(),
        across: "step".to_owned(),
        up: "adjusted loss".to_owned(),
    };
    let chart = LineChart { titles: &titles, reference: Some(1.0), ..by_folder(report, adjusted)? };
    Some(chart.draw())
}

fn losses_by_timestep(report: &RunReport) -> Option<String> {
    let titles = Titles {
        title: "Loss by timestep".to_owned(),
        subtitle:
            "each quarter of the timesteps over its own mean of the whole run; low timesteps are detail, high ones \
                   composition"
                .to_owned(),
        across: "step".to_owned(),
        up: "adjusted loss".to_owned(),
    };
    let lines = report.timestep_quarters.iter().map(|quarter| {
        let mean = quarter.loss.mean.map_or_else(String::new, |mean| format!(" (loss {mean:.3})"));
        (format!("{}–{}{mean}", quarter.from_timestep, quarter.to_timestep - 1), &quarter.loss)
    });
    let chart = LineChart { titles: &titles, reference: Some(1.0), ..chart(report, lines, adjusted)? };
    Some(chart.draw())
}

#[cfg(test)]
mod tests {
    use super::super::text::tests::sample;
    use super::*;

    #[test]
    fn each_plot_names_what_it_shows() {
        let plots = plots(&sample(300));
        let names: Vec<_> = plots.iter().map(|(name, _)| *name).collect();
        let expected =
            ["exposures_by_folder.svg", "exposures_per_image.svg", "loss_by_folder.svg", "loss_by_timestep.svg"];
        assert_eq!(names, expected);
        assert!(plots[0].1.contains("… and 260 folders with fewer uses") && plots[2].1.contains("293 more"));
        assert!(plots[3].1.contains("750–999"));
        assert!(plots.iter().all(|(_, svg)| svg.len() < 1_000_000 && !svg.contains("NaN") && !svg.contains("inf")));
    }

    #[test]
    fn a_run_without_a_step_has_none() {
        let mut report = sample(1);
        report.run.committed_steps = 0;
        assert!(super::plots(&report).is_empty());
    }
}
