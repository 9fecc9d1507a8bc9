//! The parts of a model, and where the numbers of their parameters come from while they are written.

use super::{CheckpointError, Configs};
use crate::params::{self, NamedShape};
use crate::weights::{NoValues, Weights};
use crate::{AutoencoderKl, ClipTextModel, UNet, cpu_device};

/// A part of a model that has weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Component {
    TextEncoder,
    Vae,
    Unet,
}

impl Component {
    pub(crate) const ALL: [Self; 3] = [Self::TextEncoder, Self::Vae, Self::Unet];

    /// Its folder in the diffusers layout.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TextEncoder => "text_encoder",
            Self::Vae => "vae",
            Self::Unet => "unet",
        }
    }

    /// Its file of weights in that folder, without `.safetensors`.
    pub(crate) fn weights_stem(self) -> &'static str {
        match self {
            Self::TextEncoder => "model",
            Self::Vae | Self::Unet => "diffusion_pytorch_model",
        }
    }

    /// A parameter's name within the whole model: `unet.conv_in.weight`.
    pub(crate) fn full_name(self, path: &str) -> String {
        format!("{}.{path}", self.name())
    }
}

/// Keys and shapes of the components' parameters.
pub(crate) struct ComponentShapes {
    pub(crate) unet: Vec<NamedShape>,
    pub(crate) vae: Vec<NamedShape>,
    pub(crate) text_encoder: Vec<NamedShape>,
}

impl ComponentShapes {
    /// Lists the parameters of a model of these configurations; nothing is allocated for their values.
    pub(crate) fn of(configs: &Configs) -> Self {
        let device = cpu_device();
        let weights = Weights::new(&NoValues, &device);
        Self {
            unet: params::shapes(&UNet::new(&weights, &configs.unet)),
            vae: params::shapes(&AutoencoderKl::new(&weights, &configs.vae)),
            text_encoder: params::shapes(&ClipTextModel::new(&weights, &configs.text_encoder)),
        }
    }

    pub(crate) fn get(&self, component: Component) -> &[NamedShape] {
        match component {
            Component::TextEncoder => &self.text_encoder,
            Component::Vae => &self.vae,
            Component::Unet => &self.unet,
        }
    }

    /// Number of parameters of a component.
    pub(crate) fn count(&self, component: Component) -> u64 {
        self.get(component).iter().map(|p| p.shape.iter().product::<usize>() as u64).sum()
    }
}

/// Takes the numbers of a parameter, some at a time, in order.
pub(crate) type Sink<'a> = dyn FnMut(&[f32]) -> Result<(), CheckpointError> + 'a;

/// Where the numbers come from: a model in memory, or the files of one.
pub(crate) trait Values {
    /// Gives all numbers of a parameter, by its [full name](Component::full_name).
    fn read(&self, full_name: &str, sink: &mut Sink) -> Result<(), CheckpointError>;
}
