//! What gossip costs: counted, with a bound.

use super::world::{SECOND, World};

/// At rest a probe and its answer each period, and now and then a view: it does not grow with the
/// number of members.
#[test]
fn gossip_at_rest_costs_the_same_at_any_size() {
    for count in [10, 50, 200] {
        let mut world = World::grown(1, count);
        let (packets, bytes) = (world.packets, world.bytes);
        world.run(60 * SECOND);
        let members = 60.0 * count as f64;
        let packets = (world.packets - packets) as f64 / members;
        let bytes = (world.bytes - bytes) as f64 / members;
        println!("{count} members at rest: {packets:.2} packets, {bytes:.0} bytes a second each");
        assert!(packets <= 2.5, "{packets}");
        assert!(bytes <= 400.0, "{bytes}");
    }
}

/// While something changes: one member's routes, once a second.
#[test]
fn gossip_of_heads_costs_a_few_packets_more() {
    for count in [10, 50, 200] {
        let mut world = World::grown(1, count);
        let (packets, bytes) = (world.packets, world.bytes);
        for sequence in 0..30 {
            let now = world.now;
            let head = mesh_proto::wire::RoutesHead {
                epoch: 1,
                sequence,
                count: 10,
            };
            world.nodes[0].membership.set_head(now, head);
            world.pump(0);
            world.run(SECOND);
        }
        let members = 30.0 * count as f64;
        let packets = (world.packets - packets) as f64 / members;
        let bytes = (world.bytes - bytes) as f64 / members;
        println!("{count} members, a head a second: {packets:.2} packets, {bytes:.0} bytes each");
        assert!(packets <= 20.0, "{packets}");
        assert!(bytes <= 4000.0, "{bytes}");
        assert!(world.longest <= mesh_proto::wire::GOSSIP_BYTES_MAX);
    }
}
