//! Charts as SVG: bars for a job, lines for a job with a parameter.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::table::{Bar, Chart, Panel};

/// Pixels: a panel's width, a bar's share of the height, the room for names and for figures beside the bars.
const PANEL_WIDTH: u32 = 560;
const BAR_HEIGHT: u32 = 26;
const NAMES: u32 = 150;
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
    let end = |bar: &Bar| bar.interval.map_or(bar.value, |(_, high)| high.max(bar.value));
    let longest =
        panel.bars.iter().map(end).filter(|value| value.is_finite()).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let rows = panel.bars.len() as f64;
    // The first row on top, with room for the figures to the right of the bars.
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 17))
        .margin(8)
        .set_label_area_size(LabelAreaPosition::Left, NAMES)
        .set_label_area_size(LabelAreaPosition::Bottom, 22)
        .build_cartesian_2d(0.0..longest * FIGURES, rows..0.0)?;
    let label = |value: &f64| figure(*value);
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(5)
        .x_label_formatter(&label)
        .light_line_style(WHITE)
        .draw()?;
    for (at, bar) in panel.bars.iter().enumerate() {
        let (top, middle, bottom) = (at as f64 + 0.15, at as f64 + 0.5, at as f64 + 0.85);
        let colour = colour(&bar.name).filled();
        let name_style = ("sans-serif", 14).into_text_style(area).pos(Pos::new(HPos::Right, VPos::Center));
        let (x, y) = chart.backend_coord(&(0.0, middle));
        let (left, above) = area.get_base_pixel();
        area.draw_text(&bar.name, &name_style, (x - left - 6, y - above))?;
        if !bar.value.is_finite() {
            continue;
        }
        chart.draw_series([Rectangle::new([(0.0, top), (bar.value, bottom)], colour)])?;
        if let Some((low, high)) = bar.interval {
            chart.draw_series([PathElement::new([(low, middle), (high, middle)], BLACK.stroke_width(2))])?;
        }
        let figure_style = ("sans-serif", 13).into_text_style(area).pos(Pos::new(HPos::Left, VPos::Center));
        let after = end(bar) + longest * 0.01;
        chart.draw_series([Text::new(figure(bar.value), (after, middle), figure_style)])?;
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
    // Room for the legend above the lines.
    ys.end *= 3.0;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .set_label_area_size(LabelAreaPosition::Left, 60)
        .set_label_area_size(LabelAreaPosition::Bottom, 45)
        .build_cartesian_2d(xs.log_scale(), ys.log_scale())?;
    let label = |value: &f64| format!("{value}");
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&label)
        .y_label_formatter(&label)
        .light_line_style(WHITE)
        .label_style(("sans-serif", 14))
        .draw()?;
    for (name, points) in lines {
        let colour = colour(name);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .background_style(WHITE)
        .label_font(("sans-serif", 13))
        .draw()?;
    root.present()?;
    Ok(())
}

/// A runtime's colour, the same in all charts; kittiwake stands out.
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

/// A value with as many digits as people want to read.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => super::table::grouped(value),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
