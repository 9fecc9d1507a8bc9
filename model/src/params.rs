//! Walking the parameters of a module by their diffusers names.
//!
//! burn reports a name for every struct field and vector index; together they are the checkpoint's key, because
//! the structs are declared so. Variants of enums are the only names that do not count.

use crate::ops;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Shape, Tensor, TensorData};

/// A parameter's key and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedShape {
    pub(crate) path: String,
    pub(crate) shape: Vec<usize>,
}

/// A parameter's key, and values as a vector on its device, without autodiff.
#[derive(Clone, Debug)]
pub(crate) struct NamedTensor {
    pub(crate) path: String,
    pub(crate) values: Tensor<1>,
}

/// Keys and shapes in the order of declaration; nothing is allocated.
pub(crate) fn shapes<M: Module>(module: &M) -> Vec<NamedShape> {
    struct Shapes(Vec<NamedShape>);
    impl ParamVisitor for Shapes {
        fn visit<const D: usize>(&mut self, path: String, param: &Param<Tensor<D>>) {
            let shape = param.lazy_shape();
            self.0.push(NamedShape { path, shape: (0..D).map(|i| shape[i]).collect() });
        }
    }
    visit(module, Shapes(Vec::new())).0
}

/// All parameters in the order of declaration. Tensors share their storage with the module.
pub(crate) fn tensors<M: Module>(module: &M) -> Vec<NamedTensor> {
    struct Tensors(Vec<NamedTensor>);
    impl ParamVisitor for Tensors {
        fn visit<const D: usize>(&mut self, path: String, param: &Param<Tensor<D>>) {
            self.0.push(NamedTensor { path, values: param.val().without_autodiff().reshape([-1]) });
        }
    }
    visit(module, Tensors(Vec::new())).0
}

/// Gives the values of a tensor to `read`, as f32: on the CPU where they are, else brought there.
pub(crate) fn read<const D: usize>(tensor: &Tensor<D>, read: impl FnOnce(&[f32])) {
    if let Some(host) = ops::Host::of(tensor) {
        return read(host.values());
    }
    let data = tensor.clone().without_autodiff().into_data().convert::<f32>();
    read(data.as_slice().expect("converted to f32"));
}

/// What [`visit`] calls for every parameter.
pub(crate) trait ParamVisitor {
    fn visit<const D: usize>(&mut self, path: String, param: &Param<Tensor<D>>);
}

/// Walks the parameters of `module` in the order of declaration.
pub(crate) fn visit<M: Module, V: ParamVisitor>(module: &M, visitor: V) -> V {
    let mut walk = Walk { place: Vec::new(), each: visitor };
    module.visit(&mut walk);
    walk.each
}

/// What [`map`] calls for every parameter.
trait ParamMapper {
    fn map<const D: usize>(&mut self, path: String, param: Param<Tensor<D>>) -> Param<Tensor<D>>;
}

/// Walks the parameters of `module`, in the order of declaration, to exchange them.
fn map<M: Module>(module: M, mapper: impl ParamMapper) -> M {
    module.map(&mut Walk { place: Vec::new(), each: mapper })
}

/// Knows where in a module it is.
struct Walk<T> {
    place: Vec<String>,
    each: T,
}

impl<T> Walk<T> {
    fn enter(&mut self, name: &str, container: &str) {
        if counts(container) {
            self.place.push(name.to_owned());
        }
    }

    fn exit(&mut self, container: &str) {
        if counts(container) {
            self.place.pop();
        }
    }
}

fn counts(container: &str) -> bool {
    !container.starts_with("Enum:")
}

impl<V: ParamVisitor> ModuleVisitor for Walk<V> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.each.visit(self.place.join("."), param);
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.exit(container);
    }
}

impl<T: ParamMapper> ModuleMapper for Walk<T> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.each.map(self.place.join("."), param)
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.exit(container);
    }
}

/// Replaces the values of all parameters, asking `values` for each by key. Whether a parameter is trained, and
/// whether it is under autodiff, stays as it is.
pub(crate) fn replace<'a, M: Module>(module: M, values: &mut dyn FnMut(&str) -> &'a [f32]) -> M {
    struct Replace<'f, 'a>(&'f mut dyn FnMut(&str) -> &'a [f32]);
    impl ParamMapper for Replace<'_, '_> {
        fn map<const D: usize>(&mut self, path: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let values = (self.0)(&path);
            param.map(|old| {
                let data = TensorData::new(values.to_vec(), old.dims());
                let new = Tensor::from_data(data, &old.device());
                new.set_require_grad(old.is_require_grad())
            })
        }
    }
    map(module, Replace(values))
}

/// Makes the tensors that take the place of a module's own.
pub(crate) trait ParamSource {
    /// Returns the parameter's new tensor, of the same shape and on the same device, without autodiff.
    fn replace<const D: usize>(&mut self, key: &str, old: Tensor<D>) -> Tensor<D>;
}

/// Replaces the tensors of all parameters of a module without autodiff. Whether a parameter is trained stays as it is.
pub(crate) fn replace_tensors<M: Module, S: ParamSource>(module: M, source: S) -> M {
    struct Replace<S>(S);
    impl<S: ParamSource> ParamMapper for Replace<S> {
        fn map<const D: usize>(&mut self, path: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|old| {
                let trains = old.is_require_grad();
                self.0.replace(&path, old).set_require_grad(trains)
            })
        }
    }
    map(module, Replace(source))
}

/// Changes the values of the parameters that are `wanted` where they are: `change(key, values)`. `module` is without
/// autodiff.
///
/// Nothing is copied as long as nobody else holds the module's tensors; whoever does keeps the old values.
pub(crate) fn change<M: Module>(
    module: &mut M,
    wanted: &dyn Fn(&str) -> bool,
    change: &mut dyn FnMut(&str, &mut [f32]),
) {
    struct Change<'f> {
        wanted: &'f dyn Fn(&str) -> bool,
        change: &'f mut dyn FnMut(&str, &mut [f32]),
    }
    impl ParamMapper for Change<'_> {
        fn map<const D: usize>(&mut self, path: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if !(self.wanted)(&path) {
                return param;
            }
            param.map(|values| ops::change(values, |values| (self.change)(&path, values)))
        }
    }
    // A module can only be mapped by value. What stands in its place meanwhile must not hold its tensors.
    let hollow = map(module.clone(), Hollow);
    let whole = std::mem::replace(module, hollow);
    *module = map(whole, Change { wanted, change });
}

/// Takes the storage out of a module.
struct Hollow;

impl ParamMapper for Hollow {
    fn map<const D: usize>(&mut self, _path: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (shape, device) = (param.lazy_shape(), param.lazy_device());
        let dims: [usize; D] = std::array::from_fn(|i| shape[i]);
        let zeros = move |device: &_, _| Tensor::zeros(dims, device);
        Param::uninitialized(param.id, zeros, device, false, Shape::from(dims))
    }
}
