//! Charts as SVG: bars for most jobs, lines for a job with a parameter.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::stats::Estimate;
use super::table::{Chart, Panel, fixed, grouped};

/// The width of a panel in pixels.
const PANEL_WIDTH: u32 = 560;
/// A bar's share of the height in pixels.
const BAR_HEIGHT: u32 = 26;
/// The width of the names to the left of the bars in pixels.
const NAMES: u32 = 150;
/// The width of the longest bar and the figure to its right, in lengths of that bar.
const FIGURES: f64 = 1.22;

/// Draws a chart into a file.
pub(crate) fn draw(file: &Path, chart: &Chart) -> Result<()> {
    let outcome = match chart {
        Chart::Bars(panels) => bars(file, panels),
        Chart::Lines { x, y, lines } => self::lines(file, x, y, lines),
    };
    outcome.map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))
}

type Drawn = Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn bars(file: &Path, panels: &[Panel]) -> Drawn {
    let rows = panels.iter().map(|panel| panel.bars.len()).max().unwrap_or(0) as u32;
    let size = (PANEL_WIDTH * panels.len() as u32, BAR_HEIGHT * rows + 70);
    let root = SVGBackend::new(file, size).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, panel) in root.split_evenly((1, panels.len())).iter().zip(panels) {
        bar_panel(area, panel)?;
    }
    root.present()?;
    Ok(())
}

fn bar_panel(area: &Area<'_>, panel: &Panel) -> Drawn {
    let longest = panel
        .bars
        .iter()
        .map(|(_, figure)| figure.high)
        .filter(|high| high.is_finite())
        .fold(f64::MIN_POSITIVE, f64::max);
    let rows = panel.bars.len() as f64;
    // The vertical axis points down, so that the first row is on top.
    let mut chart = ChartBuilder::on(area);
    chart.caption(&panel.title, ("sans-serif", 17)).margin(8).x_label_area_size(22).y_label_area_size(NAMES);
    let mut chart = chart.build_cartesian_2d(0.0..longest * FIGURES, rows..0.0)?;
    let label = |value: &f64| figure(*value);
    let mut mesh = chart.configure_mesh();
    mesh.disable_y_mesh().disable_y_axis().x_labels(5).x_label_formatter(&label).light_line_style(WHITE).draw()?;
    let style = |size, side| ("sans-serif", size).into_text_style(area).pos(Pos::new(side, VPos::Center));
    for (at, (name, Estimate { median, low, high })) in panel.bars.iter().enumerate() {
        let (top, middle, bottom) = (at as f64 + 0.15, at as f64 + 0.5, at as f64 + 0.85);
        let (x, y) = chart.backend_coord(&(0.0, middle));
        let (left, above) = area.get_base_pixel();
        area.draw_text(name, &style(14, HPos::Right), (x - left - 6, y - above))?;
        if median.is_finite() {
            chart.draw_series([Rectangle::new([(0.0, top), (*median, bottom)], colour(name).filled())])?;
            chart.draw_series([PathElement::new([(*low, middle), (*high, middle)], BLACK.stroke_width(2))])?;
            let after = (high.max(*median) + longest * 0.01, middle);
            chart.draw_series([Text::new(figure(*median), after, style(13, HPos::Left))])?;
        }
    }
    Ok(())
}

fn lines(file: &Path, x: &str, y: &str, lines: &[(String, Vec<(f64, f64)>)]) -> Drawn {
    let root = SVGBackend::new(file, (900, 560)).into_drawing_area();
    root.fill(&WHITE)?;
    let points = || lines.iter().flat_map(|(_, points)| points.iter().copied());
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), v| (low.min(v), high.max(v)));
        low * 0.8..high * 1.25
    };
    let (xs, mut ys) = (range(&mut points().map(|point| point.0)), range(&mut points().map(|point| point.1)));
    // The legend is above the lines.
    ys.end *= 3.0;
    let mut chart = ChartBuilder::on(&root);
    chart.margin(12).x_label_area_size(45).y_label_area_size(60);
    let mut chart = chart.build_cartesian_2d(xs.log_scale(), ys.log_scale())?;
    let label = |value: &f64| format!("{value}");
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(x).y_desc(y).x_label_formatter(&label).y_label_formatter(&label);
    mesh.light_line_style(WHITE).label_style(("sans-serif", 14)).draw()?;
    for (name, points) in lines {
        let colour = colour(name);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
    }
    let mut legend = chart.configure_series_labels();
    legend.position(SeriesLabelPosition::UpperLeft).border_style(BLACK).background_style(WHITE);
    legend.label_font(("sans-serif", 13)).draw()?;
    root.present()?;
    Ok(())
}

/// A runtime's colour, the same in all charts. kittiwake has the most striking one.
fn colour(name: &str) -> RGBColor {
    let family = |prefix: &str| name.starts_with(prefix);
    match name {
        _ if family("kittiwake") => RGBColor(214, 69, 65),
        _ if family("by_hand") => RGBColor(127, 140, 141),
        "tokio" => RGBColor(41, 128, 185),
        _ if family("tokio") => RGBColor(133, 183, 217),
        _ if family("smol") => RGBColor(39, 174, 96),
        "monoio" => RGBColor(142, 68, 173),
        _ if family("monoio") => RGBColor(195, 155, 211),
        "compio" => RGBColor(211, 132, 0),
        _ if family("compio") => RGBColor(240, 195, 110),
        _ => RGBColor(52, 73, 94),
    }
}

/// A value with a readable number of digits.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => grouped(value),
        size => fixed(value, if size >= 10.0 { 1 } else { 2 }),
    }
}
