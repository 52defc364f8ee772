//! A card terminal charges whenever it is asked and can't be asked whether it did. Two tills use it: a hasty one, and a
//! patient one.

use chronon::sim::{End, Simulation, SinkModel};
use chronon::{Context, Emit, Emitted, OnParked, Parked, QueryContext, Settled, State, StateMachine, Table};
use serde::{Deserialize, Serialize};

#[derive(Clone, State)]
struct Till<const HASTY: bool> {
    orders: Table<u64, Order>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Order {
    Paying,
    Paid { receipt: u64 },
    Unclear,
    Unpaid,
}

#[derive(Debug, Serialize, Deserialize)]
struct Pay {
    order: u64,
    cents: u64,
}

impl<const HASTY: bool> StateMachine for Till<HASTY> {
    type Command = Pay;
    type Reply = Order;
    type Query = u64;
    type Answer = Option<Order>;
    type Effect = Pay;
    type Outcome = u64;
    const VERSION: u32 = 1;

    fn genesis() -> Till<HASTY> {
        Till { orders: Table::new() }
    }

    fn apply(&mut self, cx: &mut Context<'_, Till<HASTY>>, Pay { order, cents }: Pay) -> Order {
        if let Some(known) = self.orders.get(&order) {
            return known.clone();
        }
        self.orders.insert(order, Order::Paying);
        cx.emit(Emit::to("terminal"), Pay { order, cents });
        Order::Paying
    }

    // The terminal did not answer. The hasty till calls that a failure; the patient one leaves it to a person.
    fn parked(&mut self, _: &mut Context<'_, Self>, charge: &Emitted<Pay>, _: Parked) -> OnParked {
        self.orders.insert(charge.effect.order, Order::Unclear);
        if HASTY { OnParked::SettleUnknown } else { OnParked::Wait }
    }

    fn settled(&mut self, cx: &mut Context<'_, Self>, charge: Emitted<Pay>, outcome: Settled<u64>) {
        let order = charge.effect.order;
        match outcome {
            Settled::Delivered(receipt) => self.orders.insert(order, Order::Paid { receipt }),
            // "Then once more": a new effect, a new key, and perhaps a second charge.
            Settled::Unknown => {
                cx.emit(Emit::to("terminal"), charge.effect);
                self.orders.insert(order, Order::Paying)
            }
            Settled::Failed { .. } | Settled::Cancelled => self.orders.insert(order, Order::Unpaid),
        };
    }

    fn query(&self, _: &QueryContext, order: u64) -> Option<Order> {
        self.orders.get(&order).cloned()
    }
}

fn simulation<const HASTY: bool>() -> Simulation<Till<HASTY>> {
    let charged_once = |end: &End<'_, Till<HASTY>>| end.at_most_one_deed("terminal", |charge| charge.order);
    Simulation::new()
        .sink("terminal", SinkModel::mail_server(), |charge: Pay| charge.order * 1_000)
        .commands(|random| Pay { order: random.below(30), cents: 1_999 })
        .invariant("each order is charged once at most", charged_once)
}

#[test]
fn the_patient_till_charges_once() {
    simulation::<false>().run();
}

#[test]
fn the_hasty_till_charges_twice_and_the_simulator_tells_how() {
    let found = simulation::<true>().find().expect("a terminal that acts and does not answer is enough");
    println!("{found}");
    assert!(found.what.contains("terminal acted twice for"), "{found}");
    assert!(found.story.iter().any(|line| line.contains("then says nothing")), "{found}");
    let told = include_str!("../../../docs/simulation.md").contains(found.to_string().trim_end());
    assert!(told, "docs/simulation.md prints another story than this one: {found}");
}
