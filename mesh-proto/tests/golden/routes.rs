//! Routes between proxies.

use mesh_proto::wire::{
    Ext, Open, OpenFind, OpenRoutes, RoutesApplied, RoutesDelta, RoutesFrame, RoutesPosition,
    RoutesReaderFrame, RoutesRows, RoutesSnapshot, Row,
};

use super::{EXT, ext, pinned};

#[test]
fn open_routes() {
    pinned(
        &Open::Routes(OpenRoutes::default()),
        &["00000002 0003", "00 00"],
    );
    pinned(
        &Open::Routes(OpenRoutes {
            have: Some(RoutesPosition {
                epoch: 4,
                sequence: 70_000,
            }),
            ext: ext(),
        }),
        &["00000010 0003", "01 04 fc70110100", EXT],
    );
}

#[test]
fn open_cluster_routes() {
    pinned(
        &Open::ClusterRoutes(OpenRoutes::default()),
        &["00000002 0006", "00 00"],
    );
    pinned(
        &Open::ClusterRoutes(OpenRoutes {
            have: Some(RoutesPosition {
                epoch: 4,
                sequence: 70_000,
            }),
            ext: ext(),
        }),
        &["00000010 0006", "01 04 fc70110100", EXT],
    );
}

#[test]
fn rows_of_clusters_are_like_those_of_agents() {
    pinned(
        &RoutesFrame::Rows(RoutesRows {
            rows: vec![row("b.io", 1)],
            last: true,
            ext: Ext::new(),
        }),
        &[
            "00000018 0502",
            "01 04 622e696f 01010101010101010101010101010101 01 00",
        ],
    );
}

#[test]
fn open_find() {
    pinned(
        &Open::Find(OpenFind {
            agent: "a1".parse().unwrap(),
            ext: Ext::new(),
        }),
        &["00000004 0005", "02 6131 00"],
    );
    pinned(
        &Open::Find(OpenFind {
            agent: "a1".parse().unwrap(),
            ext: ext(),
        }),
        &["0000000c 0005", "02 6131", EXT],
    );
}

fn row(agent: &str, instance: u8) -> Row {
    Row {
        agent: agent.parse().unwrap(),
        instance: [instance; 16],
    }
}

const ROW_A1: &str = "02 6131 01010101010101010101010101010101";
const ROW_B2: &str = "02 6232 fefefefefefefefefefefefefefefefe";

#[test]
fn routes_snapshot() {
    pinned(
        &RoutesFrame::Snapshot(RoutesSnapshot {
            epoch: 4,
            sequence: 70_000,
            count: 300,
            ext: ext(),
        }),
        &["00000012 0501", "04 fc70110100 fb2c01", EXT],
    );
}

#[test]
fn routes_rows() {
    pinned(
        &RoutesFrame::Rows(RoutesRows {
            rows: vec![row("a1", 1), row("b2", 0xfe)],
            last: false,
            ext: ext(),
        }),
        &["00000031 0502", "02", ROW_A1, ROW_B2, "00", EXT],
    );
    pinned(
        &RoutesFrame::Rows(RoutesRows {
            rows: Vec::new(),
            last: true,
            ext: Ext::new(),
        }),
        &["00000003 0502", "00 01 00"],
    );
}

#[test]
fn routes_delta() {
    pinned(
        &RoutesFrame::Delta(RoutesDelta {
            epoch: 4,
            from: 7,
            to: 300,
            added: vec![row("a1", 1)],
            removed: vec![row("b2", 0xfe)],
            ext: ext(),
        }),
        &[
            "00000036 0503",
            "04 07 fb2c01 01",
            ROW_A1,
            "01",
            ROW_B2,
            EXT,
        ],
    );
    pinned(
        &RoutesFrame::Delta(RoutesDelta {
            epoch: 1,
            from: 2,
            to: 4,
            added: Vec::new(),
            removed: Vec::new(),
            ext: Ext::new(),
        }),
        &["00000006 0503", "01 02 04 00 00 00"],
    );
}

#[test]
fn routes_applied() {
    pinned(
        &RoutesReaderFrame::Applied(RoutesApplied {
            epoch: 4,
            sequence: 70_000,
            ext: ext(),
        }),
        &["0000000f 0581", "04 fc70110100", EXT],
    );
    pinned(
        &RoutesReaderFrame::Applied(RoutesApplied {
            epoch: 1,
            sequence: 0,
            ext: Ext::new(),
        }),
        &["00000003 0581", "01 00 00"],
    );
}
